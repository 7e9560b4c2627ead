"""The corpus that comes with the package, and one way to it and to any other text.

The embedded corpus was written for this project: the report's seven languages, parallel
paragraph by paragraph (the same id in each), so that they can be compared fairly, some
code, and arithmetic that is generated.
"""

import itertools
import random
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from slm2_minimal.config import DataError
from slm2_minimal.text.conversations import ConversationReader, embedded_instructions
from slm2_minimal.text.documents import Document, DocumentReader

CORPUS_DIR = Path(__file__).parent / "corpus"
# the report's seven; the embedded corpus also has "code" and "math"
LANGUAGES = ("en", "de", "es", "fr", "it", "nl", "pt")
ARITHMETIC_DOCUMENTS = 100


def load_corpus(
    path: str | Path | None = None,
    *,
    languages: Collection[str] | None = None,
    domains: Collection[str] | None = None,
    limit: int | None = None,
) -> list[Document]:
    """The embedded corpus, or the documents at `path`, as a list of at most `limit`.

    `path` is a file (see `documents.SUFFIXES`), a folder of such files, or a Hub id:
    `owner/name` or `owner/name:configuration`, and `@split` behind it for another split
    than `train`. A text file is one document. Records need a field `text`, and may have
    `id`, `language`, `domain` and `title`; without an id, it is the file's path below
    `path` and the record's number. `languages` and `domains` narrow the choice.

    Raises DataError for nothing there, or what is no text, by its file and line.
    """
    stream = stream_corpus(path, languages=languages, domains=domains)
    documents = list(itertools.islice(stream, limit))
    if not documents:
        where = repr("embedded" if path is None else str(path))
        chosen = [sorted(names) if names else "all" for names in (languages, domains)]
        raise DataError(
            f"corpus = {where}: no document with languages = {chosen[0]}, domains = {chosen[1]};"
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
    chat: bool = False,
) -> Iterator[Document]:
    """`load_corpus` one document at a time, in a fixed order, for text of any size.

    `text_field`, `skipped` and `root` are those of `text.documents.DocumentReader`.
    With `chat`, they are conversations, as `text.conversations` reads them; those that
    come with the package are instructions.
    """
    for name, names in (("languages", languages), ("domains", domains)):
        if isinstance(names, str):  # a string is a collection too, of its letters
            raise DataError(f"{name} = {names!r}: must be a list of names; write [{names!r}]")

    reader = (ConversationReader if chat else DocumentReader)(text_field, skipped)
    embedded = embedded_instructions if chat else _embedded
    documents = embedded() if path is None else reader.read(path, root)
    has_text = False
    for document in documents:
        has_text = True
        right_language = languages is None or document.language in languages
        if right_language and (domains is None or document.domain in domains):
            yield document

    # of one file among several, all records may well be unusable
    if skipped and skipped["no text"] and not has_text and root in (None, path):
        raise DataError(
            f"path = {str(path)!r}: no record has a field {text_field!r} that holds a string;"
            " name the one that does as the source's text_field"
        )


def arithmetic(count: int, seed: int = 0) -> Iterator[Document]:
    """Documents of exercises in four kinds with results, each a little harder."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        largest = 10 ** (1 + number * 3 // count)
        text = "\n".join(_exercise(rng, largest) for _ in range(24))
        title = f"Numbers below {largest * 10:,}"
        yield Document(f"arithmetic-{number + 1:03d}", "math", "arithmetic", title, text)


def _exercise(rng: random.Random, largest: int) -> str:
    a = rng.randrange(largest * 10)
    b = rng.randrange(1, largest * 10)
    operation = rng.choice("+-*/")
    if operation == "/":
        return f"{a * b} / {b} = {a}"
    results = {"+": a + b, "-": a - b, "*": a * b}
    return f"{a} {operation} {b} = {results[operation]}"


def _embedded() -> Iterator[Document]:
    for name in (*LANGUAGES, "code"):
        yield from DocumentReader().json_lines(CORPUS_DIR / f"{name}.jsonl", name)
    yield from arithmetic(ARITHMETIC_DOCUMENTS)
