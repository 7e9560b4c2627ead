"""Records one at a time: what cannot be used is counted, no line too long is held."""

import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from slm2_minimal.config import DataError
from slm2_minimal.text.corpus import load_corpus, stream_corpus
from slm2_minimal.text.documents import MAX_LINE_BYTES
from tests.complaints import data_error as complaint


def test_records_that_cannot_be_used_are_counted_and_passed_over(tmp_path: Path) -> None:
    bad = [
        b"{",
        b"[]",
        b'{"text": 3}',
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b'{"text": "x", "n": ' + b"1" * 5000 + b"}",
    ]
    (tmp_path / "a.jsonl").write_bytes(
        b"\n".join([b'{"text": "first"}', *bad, b"", b'{"text": "last"}'])
    )
    (tmp_path / "b.txt").write_bytes(b"Stra\xdfe")
    skipped = Counter[str]()
    assert [d.text for d in stream_corpus(tmp_path, skipped=skipped)] == ["first", "last"]
    assert skipped == {"not JSON": 3, "no text": 2, "not UTF-8": 2}


def test_one_line_of_200_megabytes_is_passed_over_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(200):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"text": "after"}\n')
    skipped = Counter[str]()
    tracemalloc.start()
    assert [d.text for d in stream_corpus(path, skipped=skipped)] == ["before", "after"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert skipped == {"line too long": 1}
    assert peak < 2.5 * MAX_LINE_BYTES
    assert f"{path}:2: longer than 64 MiB" in complaint(lambda: load_corpus(path))


@pytest.mark.parametrize("size", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_the_longest_line(tmp_path: Path, size: int) -> None:
    """`size` bytes with the newline: up to the limit a line is read."""
    path = tmp_path / "a.jsonl"
    frame = len(b'{"text": ""}\n')
    path.write_bytes(b'{"text": "' + b"x" * (size - frame) + b'"}\n{"text": "after"}\n')
    skipped = Counter[str]()
    lengths = [len(d.text) for d in stream_corpus(path, skipped=skipped)]
    assert (lengths, sum(skipped.values())) == (
        ([size - frame, 5], 0) if size <= MAX_LINE_BYTES else ([5], 1)
    )


def test_text_may_stand_in_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "yes", "text": "no"}\n')
    assert [d.text for d in stream_corpus(tmp_path / "a.jsonl", text_field="content")] == ["yes"]
    with pytest.raises(
        DataError,
        match=(
            r"has no field 'body' that holds a string; mend this record, or if all are like it,"
            r" rename the field \(a source can name another as its text_field\)$"
        ),
    ):
        list(stream_corpus(tmp_path / "a.jsonl", text_field="body"))
