"""The ledger of what the report contains points at chapters, modules and tests that
exist, and leaves no chapter out.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
STATUS = {"exact", "scaled down", "quoted", "added", "later"}


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row below a table's head."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "What":
            yield cells


def gaps(text: str, chapters: set[str], root: Path = ROOT) -> list[str]:
    """What is wrong with a ledger, a line each."""
    found, named = [], set()
    for what, chapter, code, test, status in rows(text):
        if status not in STATUS:
            found.append(f"{what}: status {status!r}")
        if (status == "later") != (not chapter and not code and not test):
            found.append(
                f"{what}: {status}, so it has"
                f" {'nothing' if status == 'later' else 'chapter, code and test'} to show"
            )
            continue
        if status == "later":
            continue
        link = re.fullmatch(r"\[\]\((\w+)\)", chapter)
        if not link or link[1] not in chapters:
            found.append(f"{what}: chapter {chapter!r}")
        else:
            named.add(link[1])
        for path in (root / "slm2_minimal" / code.strip("`"), root / test.strip("`")):
            if not path.is_file():
                found.append(f"{what}: no file {path.relative_to(root)}")
    return found + [f"no row for {chapter}" for chapter in sorted(chapters - named)]


def numbered_chapters() -> set[str]:
    table = yaml.safe_load((BOOK / "_toc.yml").read_text())
    return {
        chapter["file"]
        for part in table["parts"]
        if part.get("numbered", True)
        for chapter in part["chapters"]
    }


def test_the_ledger_has_no_gaps() -> None:
    assert gaps((BOOK / "coverage.md").read_text(), numbered_chapters()) == []


def test_each_kind_of_gap_is_found() -> None:
    good = "| Blending | [](06_mixture) | `cli.py` | `tests/book/test_ledger.py` | exact |"
    chapters = {"06_mixture"}
    assert gaps(good, chapters) == []
    for change in (
        ("exact", "perhaps"),
        ("exact", "later"),
        ("[](06_mixture)", ""),
        ("06_mixture", "08_gone"),
        ("cli.py", "gone.py"),
        ("test_ledger.py", "test_gone.py"),
    ):
        assert gaps(good.replace(*change), chapters), change
    assert gaps(good, chapters | {"07_training"}) == ["no row for 07_training"]
