"""Texts from files and folders in every format, the damaged among them."""

import gzip
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm2_minimal.config import MissingExtraError
from slm2_minimal.text.corpus import load_corpus, stream_corpus
from slm2_minimal.text.documents import ZSTD, Document, text_files
from tests.complaints import config_error
from tests.complaints import data_error as complaint

RECORDS = [
    {
        "text": "erste Zeile\nzweite",
        "id": "a",
        "language": "de",
        "domain": "tales",
        "title": "Eins",
    },
    {"text": "sécond"},
]


def read_back(path: Path, stem: str, first: int = 1) -> None:
    """What RECORDS must become; missing fields get a name from file and place."""
    assert load_corpus(path) == [
        Document("a", "de", "tales", "Eins", "erste Zeile\nzweite"),
        Document(f"{stem}-{first + 1}", "und", "text", "", "sécond"),
    ]
    assert load_corpus(str(path), languages=["de"]) == load_corpus(path)[:1]


def jsonl(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Olá\n\nmundo", encoding="utf-8")
    assert load_corpus(path) == [Document("letter", "und", "text", "letter", "Olá\n\nmundo")]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(jsonl(RECORDS))
    read_back(path, "some")


def test_empty_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'\n{"text": "x"}\n   \n{"text": "y"}')
    assert [(d.id, d.text) for d in load_corpus(path)] == [("some-2", "x"), ("some-4", "y")]


def test_gzipped_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(RECORDS)))
    read_back(path, "some.jsonl")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    pq.write_table(pa.Table.from_pylist([RECORDS[0], dict.fromkeys(RECORDS[0]) | RECORDS[1]]), path)
    read_back(path, "some", first=0)


def test_folder(tmp_path: Path) -> None:
    """Files in the order of their paths, below each other too; other files, and folders
    that are named like files, are no documents.
    """
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("three")
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "one"}, {"text": "two"}]))
    (tmp_path / "README.md").write_text("not a text")
    (tmp_path / "part.parquet").mkdir()
    pq.write_table(pa.table({"text": ["four"]}), tmp_path / "part.parquet" / "0.parquet")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(jsonl([{"text": "five"}])))
    assert [document.text for document in load_corpus(tmp_path)] == [
        "one",
        "two",
        "three",
        "four",
        "five",
    ]


def test_ids_of_equally_named_files_tell_their_folders(tmp_path: Path) -> None:
    for folder in ("", "2023", "2024/b.1"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "part.0.jsonl").write_bytes(
            jsonl([{"text": "x"}, {"text": "y", "id": "own"}])
        )
        (tmp_path / folder / "note.txt").write_text("z")
        pq.write_table(pa.table({"text": ["w"]}), tmp_path / folder / "rows.parquet")
    documents = load_corpus(tmp_path)
    assert [document.id for document in documents] == [
        "2023/note", "2023/part.0-1", "own", "2023/rows-0",
        "2024/b.1/note", "2024/b.1/part.0-1", "own", "2024/b.1/rows-0",
        "note", "part.0-1", "own", "rows-0",
    ]  # fmt: skip
    assert {document.title for document in documents if document.text == "z"} == {"note"}
    direct = tmp_path / "2023" / "part.0.jsonl"
    assert [document.id for document in load_corpus(direct)] == ["part.0-1", "own"]
    assert [document.id for document in stream_corpus(str(direct), root=str(tmp_path))] == [
        "2023/part.0-1",
        "own",
    ]


def test_only_null_and_the_empty_string_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        jsonl([{"text": "x", "id": i, "title": i} for i in (0, False, 0.0, None, "", "0")])
    )
    assert [(d.id, d.title) for d in load_corpus(path)] == [
        ("0", "0"), ("False", "False"), ("0.0", "0.0"), ("a-4", ""), ("a-5", ""), ("0", "0"),
    ]  # fmt: skip


def test_every_field_is_valid_unicode(tmp_path: Path) -> None:
    """JSON can write half a surrogate pair, and a file's name can hold a byte that is
    no character.
    """
    half = {key: f"{key} \ud83d" for key in ("text", "id", "language", "domain", "title")}
    (tmp_path / "a.jsonl").write_text(json.dumps(half) + '\n{"text": "\\ud83d\\ude00"}\n')
    (tmp_path / os.fsdecode(b"\xe9t\xe9.txt")).write_text("a")
    assert load_corpus(tmp_path) == [
        Document("id \ufffd", "language \ufffd", "domain \ufffd", "title \ufffd", "text \ufffd"),
        Document("a-2", "und", "text", "", "😀"),
        Document("\ufffdt\ufffd", "und", "text", "\ufffdt\ufffd", "a"),
    ]


def test_linked_folders_are_read_once_each(tmp_path: Path) -> None:
    """From outside under the link's name, from inside under their own; and a circle
    ends.
    """
    source, outside = tmp_path / "source", tmp_path / "outside"
    for folder in (source / "m", outside / "deep", outside / "other"):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(folder.name)
    (source / "b-link").symlink_to(outside)
    (source / "c-link").symlink_to(outside)
    (source / "a-link").symlink_to(source / "m")
    (source / "m" / "up").symlink_to(source)
    (outside / "deep" / "up").symlink_to(outside)
    (outside / "deep" / "nowhere").symlink_to(tmp_path / "nowhere")
    expected = ["b-link/deep/a.txt", "b-link/other/a.txt", "m/a.txt"]
    assert [file.relative_to(source).as_posix() for file in text_files(source)] == expected
    assert [(d.id, d.text) for d in load_corpus(source)] == [
        ("b-link/deep/a", "deep"),
        ("b-link/other/a", "other"),
        ("m/a", "m"),
    ]
    (tmp_path / "itself").symlink_to(source)
    assert [
        file.relative_to(tmp_path / "itself").as_posix() for file in text_files(tmp_path / "itself")
    ] == expected


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    expected = [Document("a", "und", "text", "a", "x")]
    assert load_corpus("~/texts") == load_corpus(Path("~/texts/a.txt")) == expected
    assert list(stream_corpus("~/texts/a.txt", root="~/texts")) == expected
    assert text_files(Path("~/texts")) == [tmp_path / "texts" / "a.txt"]
    assert "no such file or folder" in complaint(lambda: load_corpus("~/nowhere"))
    assert "no such user" in config_error(lambda: load_corpus("~no-such-user/texts"))


@pytest.mark.parametrize(
    "name", ["p[1].parquet", "p*.parquet", "p?.parquet", "p[!a].parquet", "[a-z]/p.parquet"]
)
def test_a_parquet_file_named_like_a_pattern(tmp_path: Path, name: str) -> None:
    """It is read, and not the files that the pattern would fit."""
    for path, text in (
        (tmp_path / "p1.parquet", "other"),
        (tmp_path / "a" / "p.parquet", "other"),
        (tmp_path / name, "own"),
    ):
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": [text]}), path)
    assert [document.text for document in load_corpus(tmp_path / name)] == ["own"]


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"text": "good"}\nbroken')
    assert [document.text for document in load_corpus(path, limit=1)] == ["good"]


@pytest.mark.parametrize(
    ("name", "content", "place", "remedy"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', ":2: not JSON", "every line must be one object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', ":2: not UTF-8", "iconv"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"content": "x"}\n',
            ":2: has no field 'text'",
            "rename the field",
        ),
        (
            "a.jsonl",
            b'{"text": "x", "id": ' + b"1" * 5000 + b"}\n",
            ":1: not JSON",
            "a number of too many digits",
        ),
        ("a.jsonl", b'{"text": 3}\n', ":1: has no field 'text'", "that holds a string"),
        ("a.jsonl", b'{"text": null}\n', ":1: has no field 'text'", "that holds a string"),
        ("a.jsonl", b'["text"]\n', ":1: has no field 'text'", "rename"),
        ("a.txt", b"abc\xff", ": byte 3 is not UTF-8", "iconv"),
        ("a.jsonl.gz", b"plain", ": cannot be read after line 0", "Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(jsonl(RECORDS * 50))[:-12],
            ": cannot be read after line ",
            "ended before the end-of-stream marker",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(b"x" * 99)[:10] + b"\xff" * 20,
            ": cannot be read after line 0",
            "decompressing",
        ),
        ("a.jsonl.gz", gzip.compress(b"\xff"), ":1: not UTF-8", "iconv"),
    ],
    ids=[
        "json",
        "utf8",
        "field",
        "digits",
        "number",
        "null",
        "list",
        "txt",
        "not-gzip",
        "truncated-gzip",
        "damaged-gzip",
        "gzip-utf8",
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, place: str, remedy: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for where in (path, str(path), tmp_path):
        message = complaint(lambda where=where: load_corpus(where))  # type: ignore[misc]
        assert message.startswith(f"{path}{place}")
        assert remedy in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw[:4] + b"\x5a" * 60 + raw[64:],
    ],
)
def test_damaged_parquet(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x", "y"] * 50}), path)
    path.write_bytes(damage(path.read_bytes()))
    message = complaint(lambda: load_corpus(path))
    assert message.startswith(f"{path}: cannot be read (")
    assert message.endswith("check or copy it again")


def test_parquet_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"]}), path)
    assert complaint(lambda: load_corpus(path)).startswith(f"{path}, row 0: has no field 'text'")
    pq.write_table(pa.table({"text": ["x", None]}), path)
    assert complaint(lambda: load_corpus(path)).startswith(f"{path}, row 1: has no field 'text'")


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    assert "no such file or folder" in complaint(lambda: load_corpus(tmp_path / "nowhere.jsonl"))
    assert "no such file or folder" in complaint(lambda: load_corpus("texts/nowhere.jsonl"))
    for name in (
        "./owner/name",
        "owner/",
        "owner/name/",
        "owner",
        "~/name",
        "own er/name",
        "owner/na\tme",
        "-owner/name",
    ):
        assert f"path = {name!r}: no such file or folder" in complaint(
            lambda name=name: load_corpus(name)
        )  # type: ignore[misc]
    assert "no .txt, .jsonl, .ndjson, " in complaint(lambda: load_corpus(tmp_path))
    (tmp_path / "a.csv").write_text("text\nx\n")
    assert "unknown kind of file" in complaint(lambda: load_corpus(tmp_path / "a.csv"))
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "no document with languages = all" in complaint(
        lambda: load_corpus(tmp_path / "a.jsonl")
    )


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for name, method in (("a.txt", "read_text"), ("a.jsonl", "open")):
        (tmp_path / name).write_text('{"text": "x"}')
        monkeypatch.setattr(Path, method, refuse)
        assert "Permission denied" in complaint(lambda name=name: load_corpus(tmp_path / name))  # type: ignore[misc]


def test_zst_of_several_frames_and_a_truncated_one(tmp_path: Path) -> None:
    def compressed(records: range) -> bytes:
        buffer = pa.BufferOutputStream()
        with pa.output_stream(buffer, compression="zstd") as file:
            file.write(
                b"".join(
                    json.dumps({"text": f"text {i} of many " * 20}).encode() + b"\n"
                    for i in records
                )
            )
        return buffer.getvalue().to_pybytes()

    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compressed(range(1000)) + compressed(range(1000, 3000)))
    assert [d.text.split()[1] for d in load_corpus(path)] == [str(i) for i in range(3000)]
    path.write_bytes(compressed(range(3000))[:-2000])
    assert re.search(
        r"a\.jsonl\.zst: cannot be read after line \d+ \(Compressed file ended",
        complaint(lambda: load_corpus(path)),
    )


def test_zst_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, ZSTD, None)
    remedy = rf"needs the package '{ZSTD}': pip install 'slm2-minimal\[hf\]'"
    with pytest.raises(MissingExtraError, match=remedy):
        load_corpus(tmp_path / "a.jsonl.zst")
