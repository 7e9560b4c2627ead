"""The embedded corpus as it is promised, the held-out split, and one reader for files, folders and the Hub."""

import gzip
import json
import os
import re
import sys
import tracemalloc
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.config import DataError, MissingExtraError
from slm2_minimal.text.corpus import (
    HUB_ID,
    LANGUAGES,
    MAX_LINE_BYTES,
    Document,
    arithmetic,
    is_validation,
    load_corpus,
    stream_corpus,
    text_files,
)

ALL = ("en", "de", "es", "fr", "it", "nl", "pt", "code", "math")
PROSE_DOMAINS = {"stories", "explanations", "dialogues", "letters", "recipes", "history", "science"}


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return load_corpus()


def of(corpus: list[Document], language: str) -> list[Document]:
    return [document for document in corpus if document.language == language]


# The embedded corpus


def test_languages(corpus: list[Document]) -> None:
    assert ALL[:7] == LANGUAGES
    assert list(dict.fromkeys(document.language for document in corpus)) == list(ALL)


@pytest.mark.parametrize("language", LANGUAGES)
def test_size_of_a_language(corpus: list[Document], language: str) -> None:
    documents = of(corpus, language)
    assert len(documents) >= 100
    assert sum(len(document.text.encode()) for document in documents) >= 60_000


def test_size_of_code_and_math(corpus: list[Document]) -> None:
    assert len(of(corpus, "code")) >= 40
    assert len(of(corpus, "math")) == 100


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_translations_are_parallel(corpus: list[Document], language: str) -> None:
    english, other = of(corpus, "en"), of(corpus, language)
    assert [document.id for document in other] == [document.id for document in english]
    assert [document.domain for document in other] == [document.domain for document in english]
    paragraphs = [[len(document.text.split("\n\n")) for document in documents] for documents in (english, other)]
    assert paragraphs[0] == paragraphs[1]


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_translations_are_translations(corpus: list[Document], language: str) -> None:
    """Not the English text again, and about as long. Names and numbers are what three words in a row may have in common."""
    for english, other in zip(of(corpus, "en"), of(corpus, language), strict=True):
        common, own = shingles(english.text, 3) & shingles(other.text, 3), shingles(other.text, 3)
        assert len(common) < 0.1 * len(own), other.id
        assert 0.7 < len(other.text) / len(english.text) < 1.5, other.id


def test_ids_and_domains(corpus: list[Document]) -> None:
    keys = [(document.language, document.id) for document in corpus]
    assert len(set(keys)) == len(keys)
    for document in corpus:
        expected = {"code": {"code"}, "math": {"arithmetic"}}.get(document.language, PROSE_DOMAINS)
        assert document.domain in expected, document.id
        assert document.id.rpartition("-")[0] == document.domain
        assert document.title.strip() == document.title != ""
    assert {document.domain for document in of(corpus, "en")} == PROSE_DOMAINS


def test_text_is_clean_unicode(corpus: list[Document]) -> None:
    for document in corpus:
        where = f"{document.language} {document.id}"
        for text in (document.text, document.title):
            assert unicodedata.is_normalized("NFC", text), where
            allowed = {"\n", "\t"} if document.language == "code" else {"\n"}
            assert {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn")} <= allowed, where
            assert "\ufffd" not in text, where
        body = document.text.removesuffix("\n") if document.language == "code" else document.text
        assert body == body.strip(), where
        assert len(document.text) > 100, where


@pytest.mark.parametrize("language", LANGUAGES)
def test_prose_is_paragraphs(corpus: list[Document], language: str) -> None:
    """One paragraph a line, one empty line between two, no blanks at the ends, nothing twice."""
    paragraphs = [paragraph for document in of(corpus, language) for paragraph in document.text.split("\n\n")]
    assert [p for p in paragraphs if p != p.strip() or "\n" in p or "  " in p or not p] == []
    long = [p for p in paragraphs if len(p) > 60]
    assert len(set(long)) == len(long)


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """The word n-grams of a text."""
    words = text.split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


@pytest.mark.parametrize("language", ALL)
def test_no_near_duplicates(corpus: list[Document], language: str) -> None:
    grams = [(document.id, shingles(document.text)) for document in of(corpus, language)]
    alike = [
        (a, b) for i, (a, first) in enumerate(grams) for b, second in grams[:i] if len(first & second) >= 0.3 * max(1, len(first | second))
    ]
    assert alike == []


def test_the_duplicate_measure_finds_duplicates() -> None:
    text = "one two three four five six seven eight nine ten"
    assert shingles(text) & shingles("zero " + text) == shingles(text)
    assert len(shingles(text)) == 6


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_uses_its_own_letters(corpus: list[Document], language: str) -> None:
    """A rough guard against a file that holds another language: its commonest little words, and letters that it needs."""
    words = {"en": "the", "de": "und", "es": "los", "fr": "les", "it": "che", "nl": "het", "pt": "não"}
    letters = {"en": "w", "de": "ß", "es": "ñ", "fr": "ê", "it": "ù", "nl": "ij", "pt": "ã"}
    text = " ".join(document.text for document in of(corpus, language))
    counts = {other: len(re.findall(rf"\b{word}\b", text)) for other, word in words.items()}
    assert max(counts, key=lambda key: counts[key]) == language
    assert letters[language] in text


# Arithmetic


def test_arithmetic_is_right(corpus: list[Document]) -> None:
    operations: dict[str, Callable[[int, int], int]] = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    seen = set()
    for document in of(corpus, "math"):
        lines = document.text.split("\n")
        assert len(lines) == 24
        for line in lines:
            match = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (-?\d+)", line)
            assert match, line
            a, b, result = int(match[1]), int(match[3]), int(match[4])
            if match[2] == "/":
                assert divmod(a, b) == (result, 0), line
            else:
                assert operations[match[2]](a, b) == result, line
            seen.add(match[2])
    assert seen == set("+-*/")


def test_arithmetic_is_the_same_on_every_machine() -> None:
    first, *_, last = arithmetic(100)
    assert (first.id, first.language, first.domain, first.title) == ("arithmetic-001", "math", "arithmetic", "Numbers below 100")
    assert (last.id, last.title) == ("arithmetic-100", "Numbers below 10,000")
    assert first.text.split("\n")[:3] == ["2666 / 62 = 43", "2600 / 52 = 50", "78 - 2 = 76"]
    assert list(arithmetic(100)) == list(arithmetic(100))
    assert next(arithmetic(100, seed=1)).text != first.text


# The held-out split


@pytest.mark.parametrize(
    ("document_id", "held_out_from"),
    [("stories-001", 36), ("stories-002", 56), ("science-007", 67), ("code-001", 84), ("arithmetic-001", 4), ("arithmetic-042", 12),
     ("café", 50), ("", 53)],
)  # fmt: skip
def test_is_validation_never_changes(document_id: str, held_out_from: int) -> None:
    """The literal values make a change of the rule visible: it would move documents between training and validation of old runs."""
    assert not is_validation(document_id, held_out_from - 1)
    assert is_validation(document_id, held_out_from)


@given(document_id=st.text(max_size=20), percent=st.integers(0, 99))
def test_is_validation_grows_with_the_percentage(document_id: str, percent: int) -> None:
    assert not is_validation(document_id, 0)
    assert is_validation(document_id, 100)
    assert is_validation(document_id, percent + 1) or not is_validation(document_id, percent)


def test_is_validation_takes_its_share() -> None:
    share = sum(is_validation(f"document-{i}", 10) for i in range(20_000)) / 20_000
    assert abs(share - 0.1) < 0.01  # 5 sigma = 0.0106


def test_half_a_surrogate_pair_in_an_id_is_u_fffd() -> None:
    for percent in range(0, 101, 5):
        assert is_validation("a\ud83d", percent) == is_validation("a\ufffd", percent)


def test_every_part_has_something_held_out(corpus: list[Document]) -> None:
    for language in ALL:
        held_out = [document for document in of(corpus, language) if is_validation(document.id, 10)]
        assert 0.03 < len(held_out) / len(of(corpus, language)) < 0.25, language


def test_no_held_out_id_is_trained_on_in_any_language(corpus: list[Document]) -> None:
    held_out = {document.id for document in corpus if is_validation(document.id, 10)}
    trained = {document.id for document in corpus if not is_validation(document.id, 10)}
    assert held_out
    assert not held_out & trained
    assert held_out | trained == {document.id for document in corpus}


# Narrowing


def test_narrowing(corpus: list[Document]) -> None:
    assert load_corpus(languages=["de", "math"]) == of(corpus, "de") + of(corpus, "math")
    assert load_corpus(domains=("recipes",)) == [d for d in corpus if d.domain == "recipes"]
    assert {(d.language, d.domain) for d in load_corpus(languages={"it"}, domains={"letters"})} == {("it", "letters")}
    assert load_corpus(limit=3) == corpus[:3]
    assert load_corpus(languages=["fr"], limit=2) == of(corpus, "fr")[:2]


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_nothing_left() -> None:
    message = complaint(lambda: load_corpus(languages=["xx"]))
    assert message.startswith("corpus = 'embedded': no document with languages = ['xx'], domains = all")
    assert "domains = ['recipes']" in complaint(lambda: load_corpus(languages=["code"], domains=["recipes"]))


def test_a_string_is_not_a_list_of_languages() -> None:
    """ "code" holds the letters of "de": it would give the German texts."""
    assert complaint(lambda: load_corpus(languages="code")) == "languages = 'code': must be a list of names; write ['code']"
    assert complaint(lambda: load_corpus(domains="recipes")).startswith("domains = 'recipes'")


# Files

RECORDS = [{"text": "erste Zeile\nzweite", "id": "a", "language": "de", "domain": "tales", "title": "Eins"}, {"text": "sécond"}]


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
    """Files in the order of their paths, below each other too; other files, and folders that are named like files, are no documents."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("three")
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "one"}, {"text": "two"}]))
    (tmp_path / "README.md").write_text("not a text")
    (tmp_path / "part.parquet").mkdir()
    pq.write_table(pa.table({"text": ["four"]}), tmp_path / "part.parquet" / "0.parquet")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(jsonl([{"text": "five"}])))
    assert [document.text for document in load_corpus(tmp_path)] == ["one", "two", "three", "four", "five"]


def test_ids_of_equally_named_files_tell_their_folders(tmp_path: Path) -> None:
    for folder in ("", "2023", "2024/b.1"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "part.0.jsonl").write_bytes(jsonl([{"text": "x"}, {"text": "y", "id": "own"}]))
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
    assert [document.id for document in stream_corpus(str(direct), root=str(tmp_path))] == ["2023/part.0-1", "own"]


def test_only_null_and_the_empty_string_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"text": "x", "id": i, "title": i} for i in (0, False, 0.0, None, "", "0")]))
    assert [(d.id, d.title) for d in load_corpus(path)] == [
        ("0", "0"), ("False", "False"), ("0.0", "0.0"), ("a-4", ""), ("a-5", ""), ("0", "0"),
    ]  # fmt: skip


def test_every_field_is_valid_unicode(tmp_path: Path) -> None:
    """JSON can write half a surrogate pair, and a file's name can hold a byte that is no character."""
    half = {key: f"{key} \ud83d" for key in ("text", "id", "language", "domain", "title")}
    (tmp_path / "a.jsonl").write_text(json.dumps(half) + '\n{"text": "\\ud83d\\ude00"}\n')
    (tmp_path / os.fsdecode(b"\xe9t\xe9.txt")).write_text("a")
    assert load_corpus(tmp_path) == [
        Document("id \ufffd", "language \ufffd", "domain \ufffd", "title \ufffd", "text \ufffd"),
        Document("a-2", "und", "text", "", "😀"),
        Document("\ufffdt\ufffd", "und", "text", "\ufffdt\ufffd", "a"),
    ]


def test_linked_folders_are_read_once_each(tmp_path: Path) -> None:
    """From outside under the link's name, from inside under their own; and a circle ends."""
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
    assert [(d.id, d.text) for d in load_corpus(source)] == [("b-link/deep/a", "deep"), ("b-link/other/a", "other"), ("m/a", "m")]
    (tmp_path / "itself").symlink_to(source)
    assert [file.relative_to(tmp_path / "itself").as_posix() for file in text_files(tmp_path / "itself")] == expected


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    expected = [Document("a", "und", "text", "a", "x")]
    assert load_corpus("~/texts") == load_corpus(Path("~/texts/a.txt")) == expected
    assert list(stream_corpus("~/texts/a.txt", root="~/texts")) == expected
    assert text_files(Path("~/texts")) == [tmp_path / "texts" / "a.txt"]
    assert "no such file or folder" in complaint(lambda: load_corpus("~/nowhere"))
    assert "no such file or folder" in complaint(lambda: load_corpus("~no-such-user/texts"))


@pytest.mark.parametrize("name", ["p[1].parquet", "p*.parquet", "p?.parquet", "p[!a].parquet", "[a-z]/p.parquet"])
def test_a_parquet_file_named_like_a_pattern(tmp_path: Path, name: str) -> None:
    """It is read, and not the files that the pattern would fit."""
    for path, text in ((tmp_path / "p1.parquet", "other"), (tmp_path / "a" / "p.parquet", "other"), (tmp_path / name, "own")):
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
        ("a.jsonl", b'\xef\xbb\xbf{"text": "x"}\n', ":1: not JSON", "BOM"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', ":2: not UTF-8", "iconv"),
        ("a.jsonl", b'{"text": "x"}\n{"content": "x"}\n', ":2: has no field 'text'", "rename the field"),
        ("a.jsonl", b'{"text": "x", "id": ' + b"1" * 5000 + b"}\n", ":1: not JSON", "a number of too many digits"),
        ("a.jsonl", b'{"text": 3}\n', ":1: has no field 'text'", "that holds a string"),
        ("a.jsonl", b'{"text": null}\n', ":1: has no field 'text'", "that holds a string"),
        ("a.jsonl", b'["text"]\n', ":1: has no field 'text'", "rename"),
        ("a.txt", b"abc\xff", ": byte 3 is not UTF-8", "iconv"),
        ("a.jsonl.gz", b"plain", ": cannot be read after line 0", "Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(jsonl(RECORDS * 50))[:-12], ": cannot be read after line ", "ended before the end-of-stream marker"),
        ("a.jsonl.gz", gzip.compress(b"x" * 99)[:10] + b"\xff" * 20, ": cannot be read after line 0", "decompressing"),
        ("a.jsonl.gz", gzip.compress(b"\xff"), ":1: not UTF-8", "iconv"),
    ],
    ids=[
        "json",
        "bom",
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


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: raw[:4] + b"\x5a" * 60 + raw[64:]])
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
    for name in ("./owner/name", "owner/", "owner/name/", "owner", "~/name", "~owner/name", "own er/name", "owner/na\tme", "-owner/name"):
        assert f"path = {name!r}: no such file or folder" in complaint(lambda name=name: load_corpus(name))  # type: ignore[misc]
    assert "no .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet file in this folder" in complaint(lambda: load_corpus(tmp_path))
    (tmp_path / "a.csv").write_text("text\nx\n")
    assert "unknown kind of file" in complaint(lambda: load_corpus(tmp_path / "a.csv"))
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "no document with languages = all" in complaint(lambda: load_corpus(tmp_path / "a.jsonl"))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for name, method in (("a.txt", "read_text"), ("a.jsonl", "open")):
        (tmp_path / name).write_text('{"text": "x"}')
        monkeypatch.setattr(Path, method, refuse)
        assert "Permission denied" in complaint(lambda name=name: load_corpus(tmp_path / name))  # type: ignore[misc]


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A folder in the Hub's own format, with two configurations, under the name `owner/set-1.5`; returns what was asked for."""
    folder = tmp_path / "hub"
    for configuration, language in (("default", "en"), ("plus.de", "de")):
        (folder / configuration).mkdir(parents=True)
        for part in range(2):
            rows = [{"text": f"{language} {part} {i}", "language": language} for i in range(2)]
            pq.write_table(pa.Table.from_pylist(rows), folder / configuration / f"train-{part:05d}-of-00002.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: default/train-*.parquet\n"
        "- config_name: plus.de\n  data_files: plus.de/train-*.parquet\n---\n"
    )
    load_dataset, asked = datasets.load_dataset, []

    def from_folder(path: str, name: str | None = None, **options: Any) -> Any:
        asked.append((path, name, options))
        return load_dataset(str(folder), name, **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return asked


def test_hub_set(hub: list[tuple[Any, ...]]) -> None:
    documents = load_corpus("owner/set-1.5")
    assert [document.text for document in documents] == ["en 0 0", "en 0 1", "en 1 0", "en 1 1"]
    assert documents[2] == Document("set-1.5-2", "en", "text", "", "en 1 0")
    assert hub == [("owner/set-1.5", None, {"split": "train", "streaming": True})]


def test_hub_configuration_and_limit(hub: list[tuple[Any, ...]]) -> None:
    assert [document.text for document in load_corpus("owner/set-1.5:plus.de", limit=3)] == ["de 0 0", "de 0 1", "de 1 0"]
    assert hub[0][:2] == ("owner/set-1.5", "plus.de")


@pytest.mark.parametrize("name", ["owner/name", "0-o.w_n/N.a-m_e2", "a/b", "owner/name:plus.de", "owner/name:two words"])
def test_what_a_hub_id_looks_like(name: str) -> None:
    assert HUB_ID.fullmatch(name)
    for other in (f"/{name}", f"{name}/", f"~/{name}", f"../{name}", f"é{name}"):
        assert not HUB_ID.fullmatch(other)


def test_hub_configuration_that_is_not_there(hub: list[tuple[Any, ...]]) -> None:
    message = complaint(lambda: load_corpus("owner/set-1.5:fr"))
    assert message.startswith("path = 'owner/set-1.5:fr': neither a local file or folder nor to be had from the Hub (")


def test_hub_offline() -> None:
    """The real `load_dataset`; the test run sets HF_HUB_OFFLINE, so that it does not try for half a minute."""
    message = complaint(lambda: load_corpus("owner/name"))
    assert message.startswith("path = 'owner/name': neither a local file or folder nor to be had from the Hub (Couldn't reach")


@pytest.mark.parametrize(
    "failure",
    [ConnectionError("no route\nsecond line"), ValueError(""), RuntimeError("Dataset scripts are no longer supported, but found x.py")],
)
def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", fail)
    reason = str(failure).split("\n")[0] or type(failure).__name__
    assert f"from the Hub ({reason}); check the path; gated sets need `hf auth login`" in complaint(lambda: load_corpus("owner/name"))


def test_hub_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "one"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    assert complaint(lambda: load_corpus("owner/name")) == "owner/name: cannot be read (reset by peer); check or copy it again"


def test_hub_without_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingExtraError,
        match=r"^'owner/name' is no local file or folder here, and reading it from the Hub needs the package 'datasets'",
    ):
        load_corpus("owner/name")
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(MissingExtraError, match="datasets"):
        load_corpus(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("no need of it")
    assert load_corpus(tmp_path / "a.txt")


# Reading one at a time, and passing over what cannot be used


def test_records_that_cannot_be_used_are_counted_and_passed_over(tmp_path: Path) -> None:
    bad = [b"{", b"[]", b'{"text": 3}', b'{"text": "\xff"}', b"[" * 100_000, b'{"text": "x", "n": ' + b"1" * 5000 + b"}"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([b'{"text": "first"}', *bad, b"", b'{"text": "last"}']))
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
    assert (lengths, sum(skipped.values())) == (([size - frame, 5], 0) if size <= MAX_LINE_BYTES else ([5], 1))


def test_zst_of_several_frames_and_a_truncated_one(tmp_path: Path) -> None:
    def compressed(records: range) -> bytes:
        buffer = pa.BufferOutputStream()
        with pa.output_stream(buffer, compression="zstd") as file:
            file.write(b"".join(json.dumps({"text": f"text {i} of many " * 20}).encode() + b"\n" for i in records))
        return buffer.getvalue().to_pybytes()

    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compressed(range(1000)) + compressed(range(1000, 3000)))
    assert [d.text.split()[1] for d in load_corpus(path)] == [str(i) for i in range(3000)]
    path.write_bytes(compressed(range(3000))[:-2000])
    assert re.search(r"a\.jsonl\.zst: cannot be read after line \d+ \(Truncated", complaint(lambda: load_corpus(path)))


def test_zst_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'slm2-minimal\[hf\]'"):
        load_corpus(tmp_path / "a.jsonl.zst")


def test_text_may_stand_in_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "yes", "text": "no"}\n')
    assert [d.text for d in stream_corpus(tmp_path / "a.jsonl", text_field="content")] == ["yes"]
    with pytest.raises(
        DataError, match=r"has no field 'body' that holds a string; rename the field \(a source can name another as its text_field\)$"
    ):
        list(stream_corpus(tmp_path / "a.jsonl", text_field="body"))
