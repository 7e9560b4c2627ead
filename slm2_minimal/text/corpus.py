"""Text to train on: the corpus that comes with the package, and one reader for local
files and the Hub.

The embedded corpus was written for this project: the report's seven languages, parallel
paragraph by paragraph (the same id in each), some code, and arithmetic that is
generated. It is small, but it is real text, and parallel texts let languages be
compared fairly.
"""

import itertools
import random
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from slm2_minimal.config import DataError
from slm2_minimal.text.documents import Document, _documents_at, _Reading, _records

CORPUS_DIR = Path(__file__).parent / "corpus"
LANGUAGES = (
    "en",
    "de",
    "es",
    "fr",
    "it",
    "nl",
    "pt",
)  # the report's seven; the embedded corpus also has "code" and "math"


def load_corpus(
    path: str | Path | None = None,
    *,
    languages: Collection[str] | None = None,
    domains: Collection[str] | None = None,
    limit: int | None = None,
) -> list[Document]:
    """The embedded corpus, or the documents at `path`, narrowed to some languages and
    domains, at most `limit` of them.

    `path` is a .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, a folder of such
    files, or a Hub id, `owner/name` or `owner/name:configuration`, streamed through
    `datasets`. A text file is one document; records need a field `text`, and may have
    `id`, `language`, `domain` and `title`. Where there is no id, the file's path below
    `path` and the record's number are one.

    Raises:
        DataError: nothing there, or nothing that can be read as text; the message names
        the file and line.
    """
    documents = list(
        itertools.islice(stream_corpus(path, languages=languages, domains=domains), limit)
    )
    if not documents:
        asked = (
            f"languages = {sorted(languages) if languages else 'all'}, domains ="
            f" {sorted(domains) if domains else 'all'}"
        )
        raise DataError(
            f"corpus = {'embedded' if path is None else str(path)!r}: no document with {asked};"
            " check the names and the path"
        )
    return documents


def stream_corpus(
    path: str | Path | None = None,
    *,
    languages: Collection[str] | None = None,
    domains: Collection[str] | None = None,
    text_field: str = "text",
    skipped: Counter[str] | None = None,
    root: str | Path | None = None,
) -> Iterator[Document]:
    """`load_corpus` one document at a time, in a fixed order, holding one record in
    memory. Records have their text in `text_field`.

    With `skipped`, a record that cannot be used (not UTF-8, not JSON, no text, an
    over-long line) is passed over and counted there by its reason. Without, it is an
    error, as are missing and damaged files in either case. `root` is the folder of
    which `path` is one file: the documents without an id get the one that they have
    where the whole folder is read.
    """
    for name, names in (("languages", languages), ("domains", domains)):
        if isinstance(names, str):  # a string is a collection too, of its letters
            raise DataError(f"{name} = {names!r}: must be a list of names; write [{names!r}]")
    for document in (
        _embedded() if path is None else _documents_at(path, root, _Reading(text_field, skipped))
    ):
        if (languages is None or document.language in languages) and (
            domains is None or document.domain in domains
        ):
            yield document


def arithmetic(count: int, seed: int = 0) -> Iterator[Document]:
    """Documents of sums, differences, products and divisions with their results, a
    little harder in each than in the one before.
    """
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        largest = 10 ** (1 + number * 3 // count)
        lines = [_exercise(rng, largest) for _ in range(24)]
        yield Document(
            f"arithmetic-{number + 1:03d}",
            "math",
            "arithmetic",
            f"Numbers below {largest * 10:,}",
            "\n".join(lines),
        )


def _exercise(rng: random.Random, largest: int) -> str:
    a, b = rng.randrange(largest * 10), rng.randrange(1, largest * 10)
    operation = rng.choice("+-*/")
    if operation == "/":
        return f"{a * b} / {b} = {a}"
    return (
        f"{a} {operation} {b} ="
        f" {a + b if operation == '+' else a - b if operation == '-' else a * b}"
    )


def _embedded() -> Iterator[Document]:
    for name in (*LANGUAGES, "code"):
        yield from _records(CORPUS_DIR / f"{name}.jsonl", name, _Reading())
    yield from arithmetic(100)
