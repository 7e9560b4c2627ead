"""What stands in folders and files of all kinds is read whole, or said."""

import gzip
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm2_minimal.text.corpus import load_corpus, stream_corpus
from slm2_minimal.text.documents import Document, text_files
from tests.complaints import config_error
from tests.complaints import data_error as complaint

BOM = b"\xef\xbb\xbf"


def texts(path: Path) -> list[str]:
    return [document.text for document in load_corpus(path)]


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.output_stream(buffer, compression="zstd") as file:
        file.write(content)
    return buffer.getvalue().to_pybytes()


# Byte-order marks


@pytest.mark.parametrize(("end", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstd)])
def test_a_byte_order_mark_is_no_part_of_the_first_record(
    tmp_path: Path, end: str, pack: Any
) -> None:
    """Nor of the first of a file that was put behind another."""
    path = tmp_path / f"a.jsonl{end}"
    path.write_bytes(pack(BOM + b'{"text": "x"}\n' + BOM + b'{"text": "y"}\n' + BOM + b"\n"))
    assert texts(path) == ["x", "y"]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(BOM + b"Hello")
    assert texts(tmp_path) == ["Hello"]


# Which files of a folder are read


def test_every_ending_is_read_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = b'{"text": "x"}\n'
    for name, content in {
        "a.ndjson": line, "b.json.gz": gzip.compress(line), "c.JSONL": line, "d.TXT": b"x",
        "e.Ndjson.GZ": gzip.compress(line), "f.jsonl.ZST": zstd(line), "g.json.zst": zstd(line),
        "h.csv": b"text\nx\n", "i.json": line, ".jsonl": line,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "j.PARQUET")
    with caplog.at_level(logging.WARNING):
        assert [document.id for document in load_corpus(tmp_path)] == [
            "a-1", "b.json-1", "c-1", "d", "e.Ndjson-1", "f.jsonl-1", "g.json-1", "j-0",
        ]  # fmt: skip
        load_corpus(tmp_path)
    said = f"path = {str(tmp_path)!r}: 2 other files are not read, such as 'h.csv'"
    assert caplog.messages == [said]


def test_hidden_files_and_folders_are_no_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.txt", ".b.txt", ".git/c.txt", "d/.ipynb_checkpoints/e.txt", ".git/config"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_text(name)
    assert texts(tmp_path / "src") == ["a.txt"]
    assert caplog.messages == []
    (tmp_path / "src").rename(tmp_path / ".cache")  # whoever names a hidden one means it
    assert texts(tmp_path / ".cache") == ["a.txt"]


def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it may not be listed, or what it lists may not be looked at."""
    for name in ("a", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    closed = str(tmp_path / "closed")

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        if str(path).startswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *_, **__)

    for module, name in ((os, "scandir"), (os, "stat")):
        with monkeypatch.context() as patch:
            real = getattr(module, name)
            patch.setattr(module, name, refuse)
            message = complaint(lambda: load_corpus(tmp_path))
        assert message.startswith(closed)
        assert message.endswith("cannot be read (Permission denied); check or copy it again")


def test_what_is_no_file_but_has_the_name_of_a_text(tmp_path: Path) -> None:
    for name, make in (
        ("a.jsonl", os.mkfifo),
        ("b.txt", lambda path: path.symlink_to(tmp_path / "nowhere")),
        ("c.txt", lambda path: path.symlink_to(path)),
    ):
        path = tmp_path / name
        make(path)
        where = str(path) if name == "c.txt" else f"path = {str(path)!r}: no file, but a "
        assert complaint(lambda: text_files(tmp_path)).startswith(where)
        path.unlink()
    os.mkfifo(tmp_path / "a.jsonl")
    assert "a broken link or a pipe" in complaint(
        lambda path=path: load_corpus(tmp_path / "a.jsonl")
    )  # type: ignore[misc]


def test_paths_that_are_none() -> None:
    for call in (lambda: load_corpus(""), lambda: load_corpus("  "), lambda: load_corpus("a\0b")):
        assert config_error(call).startswith("path = ")
    assert "surrogates not allowed" in complaint(lambda: load_corpus("\ud800.txt"))
    assert "File name too long" in complaint(lambda: load_corpus("x" * 5000 + ".txt"))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "a.jsonl.zst").write_bytes(zstd(b'{"text": "x"}'))
    pq.write_table(pa.table({"text": ["y"]}), tmp_path / "b.parquet")
    (tmp_path / "b.parquet").rename(folder / os.fsdecode(b"\xe9.parquet"))
    assert [document.id for document in load_corpus(folder)] == ["a.jsonl-1", "\ufffd-0"]


# Compressed files


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_an_empty_file_is_no_compressed_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "after line 0 (it is empty, which no compressed" in complaint(lambda: texts(tmp_path))


@pytest.mark.parametrize(("end", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_damage_at_the_end_is_an_error(tmp_path: Path, end: str, pack: Any) -> None:
    content = pack(b'{"text": "x"}\n' * 1000)
    for damaged in (content[:-1], content[:-8] + b"\xff" * 8, content + b"more"):
        (tmp_path / f"a.jsonl{end}").write_bytes(damaged)
        assert "cannot be read after line " in complaint(lambda: texts(tmp_path))


def test_a_long_window_is_no_damage(tmp_path: Path) -> None:
    """Of 2 GiB, as `zstd --long=31` writes it in the frame's head, and a frame behind
    it.
    """
    line = b'{"text": "x"}\n'
    head = b"\x28\xb5\x2f\xfd\x00\xa8"
    block = (len(line) << 3 | 1).to_bytes(3, "little") + line  # the last one, not compressed
    (tmp_path / "a.jsonl.zst").write_bytes(head + block + zstd(line))
    assert texts(tmp_path) == ["x", "x"]


# Parquet


@pytest.mark.parametrize("order", [(0, 50), (50, 0), (0, 50, 0, 1)])
def test_an_empty_row_group_or_part_is_no_end(tmp_path: Path, order: tuple[int, ...]) -> None:
    (tmp_path / "parts").mkdir()
    with pq.ParquetWriter(tmp_path / "one.parquet", pa.schema([("text", pa.string())])) as writer:
        for number, rows in enumerate(order):
            table = pa.table({"text": pa.array(["x"] * rows, pa.string())})
            writer.write_table(table)
            pq.write_table(table, tmp_path / "parts" / f"{number}.parquet")
    assert texts(tmp_path / "one.parquet") == texts(tmp_path / "parts") == ["x"] * sum(order)


def test_columns_that_nobody_needs_are_not_read(tmp_path: Path) -> None:
    text = pa.array(["first", "second"])
    latin = pa.array([b"ok", b"caf\xe9"], pa.binary()).view(pa.string())
    pairs = pa.array([[("k", "v")]] * 2, pa.map_(pa.string(), pa.string()))
    newer = {"info": {"features": {"x": {"_type": "SomeNewerFeature"}}}}
    table = pa.Table.from_arrays(
        [text, latin, pairs, text, text], names=["text", "url", "headers", "meta", "meta"]
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps(newer)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path) == ["first", "second"]

    pq.write_table(table.rename_columns(["text", "text", "a", "b", "c"]), tmp_path / "a.parquet")
    assert "two of its columns have one name" in complaint(lambda: texts(tmp_path))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
@pytest.mark.parametrize("field", ["text", "title"])
def test_a_record_that_is_not_utf8_is_counted(
    tmp_path: Path, kind: pa.DataType, field: str
) -> None:
    values = pa.array([b"good", b"caf\xe9", None, b"good"], pa.binary())
    bad = values if kind == pa.binary() else values.view(pa.string()).cast(kind)
    table = pa.table({"text": ["good"] * 4, "title": ["good"] * 4})
    table = table.set_column(table.schema.get_field_index(field), field, bad)
    pq.write_table(table, tmp_path / "a.parquet")
    skipped = Counter[str]()
    documents = list(stream_corpus(tmp_path, skipped=skipped))
    assert {document.text for document in documents} == {"good"}
    assert skipped == {"not UTF-8": 1} | ({"no text": 1} if field == "text" else {})
    assert ", row 1: not UTF-8; convert" in complaint(lambda: load_corpus(tmp_path))


def test_a_changed_byte_is_an_error_where_the_file_has_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["some text"]})
    pq.write_table(table, path, write_page_checksum=True, use_dictionary=False, compression="none")
    path.write_bytes(path.read_bytes().replace(b"some text", b"same text"))
    assert f"{path}: cannot be read (" in complaint(lambda: texts(path))


def test_values_of_all_types_in_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {"id": [7], "language": pa.array(["de"]).dictionary_encode(), "title": [1.5], "text": ["x"]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert load_corpus(tmp_path) == [Document("7", "de", "text", "1.5", "x")]


# Records without text


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_field_that_no_record_has_is_an_error_even_where_records_are_counted(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"a.{kind}"

    def write(records: list[dict[str, Any]]) -> None:
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        else:
            path.write_text("".join(json.dumps(record) + "\n" for record in records))

    write([{"body": "x"}, {"body": "y"}])
    message = complaint(lambda: list(stream_corpus(path, skipped=Counter())))
    assert message == (
        f"path = {str(path)!r}: no record has a field 'text' that holds a string; name the one that"
        " does as the source's text_field"
    )

    # one of several files may be of such records only
    assert list(stream_corpus(path, skipped=Counter(), root=tmp_path)) == []
    write([{"text": None}, {"text": "y"}])
    skipped = Counter[str]()
    assert [d.text for d in stream_corpus(path, skipped=skipped)] == ["y"]
    assert skipped == {"no text": 1}
    assert "that holds a string; mend this record, or if all" in complaint(lambda: texts(path))
