"""Source display, recorded runs and the plot style."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.config import DataError
from slm2_minimal.teach import (
    COLORS,
    LINE_STYLES,
    load_record,
    provenance,
    released_weights,
    save_record,
    show_source,
    use_style,
)
from slm2_minimal.text.tokenizer import Tokenizer
from slm2_minimal.train.optimizer import clip_gradients
from slm2_minimal.train.schedule import average_lr, learning_rate


def test_source_is_shown_under_its_path_from_the_package() -> None:
    text = show_source(learning_rate, average_lr).data
    assert text.count("`slm2_minimal/train/schedule.py`") == 2
    assert "```python\ndef learning_rate(" in text
    assert "```python\ndef average_lr(" in text


def test_a_decorated_function_is_ours() -> None:
    text = show_source(clip_gradients).data
    assert text.startswith("`slm2_minimal/train/optimizer.py`")
    assert "@torch.no_grad()\ndef clip_gradients(" in text


def test_a_method_is_shown_without_its_indentation() -> None:
    assert "```python\ndef encode_batch(" in show_source(Tokenizer.encode_batch).data


def test_a_record_comes_back_with_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    save_record(path, "python book/experiments/run.py", {"loss": [3.5, 2.5]}, seconds=61.4)
    record = load_record(path)
    assert record["results"] == {"loss": [3.5, 2.5]}
    assert record["seconds"] == 61
    assert list(tmp_path.iterdir()) == [path], "nothing half-written stays"
    line = provenance(record).data
    for part in (
        "python book/experiments/run.py",
        record["date"],
        record["commit"],
        record["torch"],
        "61 seconds",
    ):
        assert part in line


def test_provenance_of_a_long_run_is_in_minutes(tmp_path: Path) -> None:
    save_record(tmp_path / "run.json", "run", None, seconds=1800)
    assert "30 minutes" in provenance(load_record(tmp_path / "run.json")).data


@pytest.mark.parametrize("content", [None, "{"])
def test_a_missing_or_broken_record_is_a_users_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"run\.json.*cannot be read"):
        load_record(path)


def test_the_released_weights(tmp_path: Path) -> None:
    """Shown where they were checked; a trial on small models says nothing of them."""
    path = tmp_path / "released.json"
    assert released_weights(path).data.startswith("*Not yet run* here: `make check-released`")

    good, bad = ({"check": name, "passed": passed} for name, passed in (("a", True), ("b", False)))
    results: dict[str, Any] = {
        "base": {"source": "owner/base", "checks": [good, good], "bits_per_byte": {"en": 0.75}},
        "zephyr": {"source": "owner/chat", "checks": [good, bad], "bits_per_byte": {"en": 0.8}},
    }
    save_record(path, "python check.py", results | {"small": True}, seconds=5)
    assert released_weights(path).data.startswith("*Not yet run*")
    save_record(path, "python check.py", results | {"small": False}, seconds=5)
    text = released_weights(path).data
    assert "| owner/base | 2 of 2 | none | en 0.75 |\n| owner/chat | 1 of 2 | b | en 0.80 |" in text
    assert text.endswith("Make it again with `python check.py`.")


def test_a_record_is_plain_json(tmp_path: Path) -> None:
    save_record(tmp_path / "run.json", "run", [1], seconds=1)
    assert json.loads((tmp_path / "run.json").read_text())["results"] == [1]


def luminance(color: str) -> float:
    """Relative luminance of an sRGB colour: 0 is black, 1 is white."""
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_can_be_told_from_the_page_and_from_each_other_in_grey() -> None:
    lightness = {color: 116 * luminance(color) ** (1 / 3) - 16 for color in COLORS}
    assert all(1.05 / (luminance(color) + 0.05) >= 3 for color in COLORS), "contrast with white"
    assert all(abs(lightness[a] - lightness[b]) >= 4 for a, b in combinations(COLORS, 2))
    assert all(abs(lightness[a] - lightness[b]) >= 15 for a, b in combinations(COLORS[:3], 2)), (
        "most figures have three lines"
    )


def test_lines_differ_in_style_as_well_as_in_colour() -> None:
    import matplotlib as mpl

    with mpl.rc_context():
        use_style()
        cycle = list(mpl.rcParams["axes.prop_cycle"])
        ground = mpl.rcParams["savefig.facecolor"]
    assert [entry["color"] for entry in cycle] == list(COLORS)
    assert [entry["linestyle"] for entry in cycle] == list(LINE_STYLES)
    assert len(set(LINE_STYLES)) == len(LINE_STYLES)
    assert ground == "white", "a dark page must not show through"
