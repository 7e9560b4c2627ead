"""What a stage leaves for the next one is read as it was written, or not at all."""

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.config import DataError
from slm2_minimal.prepare import run as module
from slm2_minimal.prepare.handover import read_checked, read_record, write_record
from slm2_minimal.prepare.run import prepare
from slm2_minimal.prepare.units import Unit
from tests.prepare.preparing import Make, contents, english, lines

UNIT = Unit("web-000000", "web", 1, 10, 1, {"empty": 2}, last=True)


def test_records_come_back(tmp_path: Path) -> None:
    write_record(tmp_path / "new" / "unit.json", UNIT)
    assert read_record(tmp_path / "new" / "unit.json", Unit) == UNIT


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-2],
        lambda text: text.replace('"read": 1', '"read": "many"'),
        lambda text: text.replace('"read": 1', '"read": null'),
        lambda text: text.replace('"read": 1, ', ""),
        lambda text: text.replace('"read": 1', '"read": ' + "9" * 5_000),
        lambda text: "[" * 100_000,
        lambda text: "null",
    ],
)
def test_a_damaged_record_is_said_in_one_line(tmp_path: Path, damage: Callable[[str], str]) -> None:
    path = tmp_path / "unit.json"
    write_record(path, UNIT)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=r"unit\.json: was altered after it was written; remove"):
        read_record(path, Unit)
    with pytest.raises(DataError, match=r"^[^\n]*unit\.json: cannot be read \([^\n]*; mend it$"):
        read_checked(path, Unit, "mend it")


def test_no_flipped_bit_gives_other_results(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit in each of the files that an interrupted preparation has left."""
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_bytes(lines([{"text": english(3)[2].text[200:500]}]))
    run = config("out", **{"prepare.benchmarks": {"quiz": str(benchmark)}, "prepare.workers": 1})

    def stop(*arguments: Any) -> None:
        raise DataError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", stop)
        with pytest.raises(DataError, match="stopped here"):
            prepare(run)
    before = contents(tmp_path / "out")
    left = [name for name in before if name.startswith("work/") and before[name]]
    assert {Path(name).parts[1] for name in left} >= {"text", "keys", "removed", "counts"}

    prepare(run)
    expected = contents(tmp_path / "out")
    rng = random.Random(3)
    harmless = list[str]()  # what later stages have made good already, such as keys
    monkeypatch.setattr(
        module, "in_parallel", lambda stage, work, items, *rest: [*map(work, items)]
    )
    for name in left:
        for other, content in before.items():
            path = tmp_path / "out" / other
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (tmp_path / "out" / "manifest.json").unlink(missing_ok=True)
        flipped = bytearray(before[name])
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        (tmp_path / "out" / name).write_bytes(flipped)
        with contextlib.suppress(DataError):
            prepare(run)
            assert contents(tmp_path / "out") == expected, name
            harmless.append(name)
    assert len(harmless) < len(left) / 2


def test_damaged_settings_manifest_and_report(config: Make, tmp_path: Path) -> None:
    prepare(config())
    for name in ("settings.json", "manifest.json", "report.json"):
        path = tmp_path / "out" / name
        good = path.read_bytes()
        for content in (b"", b"{}", b"[]", b"\xff", good[: len(good) // 2], b'{"format": 1}'):
            path.write_bytes(content)
            if name == "manifest.json" and content == b'{"format": 1}':
                continue  # training says what is missing in it
            with pytest.raises(DataError, match=rf"^[^\n]*{name}[^\n]*$"):
                prepare(config())
        path.write_bytes(good)
    assert json.loads((tmp_path / "out" / "settings.json").read_bytes())["tokenizer"]
