"""The reference page is what its script writes, and holds every key."""

from book import reference
from slm2_minimal.config import SourceConfig, StageConfig
from slm2_minimal.config.section import Table


def test_the_committed_page_is_what_the_script_writes() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run: python book/reference.py"


def test_the_page_has_every_table_and_key() -> None:
    page = reference.page()
    for section in (*Table.__subclasses__(), SourceConfig, StageConfig):
        for key in section.fields():
            assert f"\n| `{key}` | " in page
    for table in Table.__subclasses__():
        assert f"\n## `[{table.table_name}]`\n" in page


def test_rows_of_the_page() -> None:
    """A bound, a choice, a value that is not set, one that must be given."""
    page = reference.page()
    for row in (
        "| `partial_rotary_factor` | number ≥ 0, ≤ 1 | `0.25` | `0.25` | The share of",
        '| `device` | `"auto"`, `"cpu"`, `"cuda"` | `"auto"` | `"auto"` | Where it runs',
        "| `cooldown_start` | integer ≥ 0 | not set | `420000` | The update from",
        "| `start_tokens` | integer > 0 | must be given | Tokens from",
        "| `weights` | table of numbers | must be given | A weight",
        "| `languages` | list of texts | not set | Read these",
    ):
        assert row in page


def test_every_table_has_as_many_cells_in_each_row() -> None:
    for part in reference.page().split("\n## ")[1:]:
        rows = [line for line in part.splitlines() if line.startswith("|")]
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
