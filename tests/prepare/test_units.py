"""Units of text: cut by size and not by file, in NFC, and gone on from wherever the
last complete one ends.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

import pytest

from slm2_minimal.config import DataError, PrepareConfig, SourceConfig
from slm2_minimal.data.reading import read_source
from slm2_minimal.files import whole_file
from slm2_minimal.prepare import handover
from slm2_minimal.prepare import units as module
from slm2_minimal.prepare.units import Unit, complete_units, ingest, read_unit
from slm2_minimal.text.documents import Document

CONFIG = PrepareConfig(min_characters=3, max_characters=60, shard_megabytes=1)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceConfig:
    """Twelve usable lines of some 20 bytes among others, cut into units of 50 bytes."""
    monkeypatch.setattr(module, "MEGABYTE", 50)
    records: list[object] = [
        {"id": f"d{i}", "language": "en", "text": f"text number {i:>8}"} for i in range(12)
    ]
    records[3:3] = [{"text": ""}, {"text": "ab"}, "no record"]
    records[8:8] = [{"text": "x" * 61}]
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return SourceConfig(path=str(path))


def folder(tmp_path: Path, name: str = "units") -> Path:
    path = tmp_path / name
    path.mkdir(exist_ok=True)
    return path


def test_units_by_hand(source: SourceConfig, tmp_path: Path) -> None:
    units = ingest(folder(tmp_path), "web", source, CONFIG)
    assert [unit.name for unit in units] == [f"web-{i:06d}" for i in range(5)]
    assert [(unit.documents, unit.size, unit.read, unit.last) for unit in units] == [
        (3, 60, 3, False),
        (
            3,
            60,
            9,
            False,
            # an empty, a short and a long one were read between; the line that is no
            # record is not a document
        ),
        (3, 60, 12, False),
        (3, 60, 15, False),
        (0, 0, 15, True),
    ]
    assert units[0].skipped == {}
    assert units[-1].skipped == {"no text": 1, "empty": 1, "too short": 1, "too long": 1}
    documents = [document for unit in units for document in read_unit(folder(tmp_path), unit)]
    assert documents == [
        Document(f"d{i}", "en", "text", "", f"text number {i:>8}") for i in range(12)
    ]
    assert complete_units(folder(tmp_path), "web") == units


def failing_after(files: int) -> Callable[[str | Path], AbstractContextManager[IO[bytes]]]:
    """`whole_file` on a disk that has room for so many."""
    written = list[str | Path]()

    def write(path: str | Path) -> AbstractContextManager[IO[bytes]]:
        if len(written) == files:
            raise OSError(28, "No space left on device")
        written.append(path)
        return whole_file(path)

    return write


@pytest.mark.parametrize("complete", range(6))
def test_gone_on_from_any_unit(
    source: SourceConfig, tmp_path: Path, complete: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ingest(folder(tmp_path, "whole"), "web", source, CONFIG)
    with monkeypatch.context() as patch:
        write = failing_after(2 + 4 * complete)  # what is read, then two files, each with its seal
        patch.setattr(module, "whole_file", write)
        patch.setattr(handover, "whole_file", write)
        with pytest.raises(OSError, match="No space left") if complete < 5 else nullcontext():
            ingest(folder(tmp_path, "broken"), "web", source, CONFIG)
    assert complete_units(folder(tmp_path, "broken"), "web") == whole[:complete]
    (folder(tmp_path, "broken") / f"web-{complete:06d}.txt").write_text(
        "half a un"
    )  # a crash between the two files of the next one
    assert ingest(folder(tmp_path, "broken"), "web", source, CONFIG) == whole
    for path in folder(tmp_path, "whole").iterdir():
        assert (folder(tmp_path, "broken") / path.name).read_bytes() == path.read_bytes()


def test_complete_units_are_not_read_again(
    source: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = ingest(folder(tmp_path), "web", source, CONFIG)

    def refuse(*arguments: object) -> Iterator[Document]:
        raise AssertionError("read again")

    monkeypatch.setattr(module, "read_source", refuse)
    assert ingest(folder(tmp_path), "web", source, CONFIG) == units


def test_text_is_stored_in_nfc_and_always_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    decomposed, lone = (
        unicodedata.normalize("NFD", "crème brûlée"),
        '{"text": "half a pair \\ud83d here"}',
    )
    path.write_text(json.dumps({"text": decomposed}) + "\n" + lone + "\n")
    units = ingest(folder(tmp_path), "web", SourceConfig(path=str(path)), CONFIG)
    assert [d.text for d in read_unit(folder(tmp_path), units[0])] == [
        "crème brûlée",
        "half a pair \ufffd here",
    ]


def test_a_source_without_documents_is_one_empty_unit(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n")
    [unit] = ingest(folder(tmp_path), "web", SourceConfig(path=str(path)), CONFIG)
    assert (unit.documents, unit.last, list(read_unit(folder(tmp_path), unit))) == (0, True, [])


def test_a_unit_that_was_cut_short(source: SourceConfig, tmp_path: Path) -> None:
    unit: Unit = ingest(folder(tmp_path), "web", source, CONFIG)[0]
    (folder(tmp_path) / "web-000000.txt").write_bytes(b"text number 0")
    with pytest.raises(
        DataError, match=r"web-000000\.txt: was altered after it was written; remove"
    ):
        list(read_unit(folder(tmp_path), unit))


def test_a_unit_of_an_older_version(source: SourceConfig, tmp_path: Path) -> None:
    unit: Unit = ingest(folder(tmp_path), "web", source, CONFIG)[0]
    path = folder(tmp_path) / "web-000000.json"
    documents = {"documents": [{"id": "a", "bytes": 1}]}
    path.write_text(json.dumps({"unit": json.loads(path.read_text())["unit"]} | documents))
    handover.seal(path)
    complaint = r"000000\.json: cannot be read \(documents\.0: Input should be a valid tuple"
    with pytest.raises(DataError, match=complaint):
        list(read_unit(folder(tmp_path), unit))


def test_reading_narrows_and_counts(tmp_path: Path) -> None:
    skipped = Counter[str]()
    (tmp_path / "a.jsonl").write_text(
        '{"body": "eins", "language": "de"}\n{"body": "one", "language": "en"}\n{"text": "?"}\n'
    )
    source = SourceConfig(path=str(tmp_path / "a.jsonl"), text_field="body", languages=("de",))
    assert [document.text for document in read_source(source, skipped)] == ["eins"]
    assert skipped == {"no text": 1}
