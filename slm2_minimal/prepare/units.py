"""Units: a source's text as it was read and filtered, in pieces of even size, whatever
files it came in.

A unit is what one process works on at a time, and becomes one shard. It is two files:
`NAME.txt`, the documents' UTF-8 end to end, and `NAME.json`, what is known of each, and
how far the source had been read when the unit was full. The second is written last:
where it stands, the unit is complete.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from slm2_minimal.config import DataError, PrepareConfig, SourceConfig
from slm2_minimal.data.reading import read_source
from slm2_minimal.files import read_json, whole_file
from slm2_minimal.text.documents import Document

MEGABYTE = 1_000_000
FIELDS = ("id", "language", "domain", "title")  # of a Document, in its order; its text comes last
# Reasons of the filter; the reader's are those of records that it could not use.
FILTERED = ("empty", "too short", "too long")


@dataclass(frozen=True)
class Unit:
    """One unit, with the counts of its source up to its end."""

    name: str
    source: str
    documents: int
    size: int  # bytes of text
    read: int  # documents read from the source so far, the ones left out included
    skipped: dict[str, int]  # left out so far, by reason
    last: bool  # whether the source, or the part, ends here


@dataclass(frozen=True)
class Part:
    """Some of a source's files, where several tasks share the source.

    In place of a path, None is the embedded corpus, and a Hub id stands for itself.
    """

    number: int
    paths: Sequence[str | None]


def ingest(
    folder: Path, source: str, how: SourceConfig, config: PrepareConfig, part: Part | None = None
) -> list[Unit]:
    """Read, filter and write the units of a source or a part of it.

    Units that are there already are not written again. Held is the text of one unit.

    Raises:
        DataError: the source cannot be read; the units before the place stay.
    """
    stem = f"{source}-{part.number:06d}" if part else source
    units = complete_units(folder, stem)
    if units and units[-1].last:
        return units
    folder.mkdir(parents=True, exist_ok=True)
    complete = {unit.name for unit in units}
    for unit, documents in _cut(stem, source, how, config, part):
        if unit.name not in complete:
            _write(folder, unit, documents)
            units.append(unit)
        del documents  # before the next ones are read
    return units


def _cut(
    stem: str, source: str, how: SourceConfig, config: PrepareConfig, part: Part | None
) -> Iterator[tuple[Unit, list[Document]]]:
    """The units of a source or a part, each with its documents."""
    skipped = Counter[str]()
    documents: list[Document] = []
    number = 0
    size = 0
    read = 0

    def unit(last: bool) -> Unit:
        name = _name(stem, number)
        return Unit(name, source, len(documents), size, read, dict(skipped), last)

    for document in read_source(how, skipped, part.paths if part else None):
        read += 1
        text = unicodedata.normalize("NFC", document.text)
        reason = _reason_to_skip(text, config)
        if reason:
            skipped[reason] += 1
            continue
        documents.append(replace(document, text=text))
        size += len(text.encode())
        if size >= config.shard_megabytes * MEGABYTE:
            yield unit(last=False), documents
            documents = []
            number += 1
            size = 0
    yield unit(last=True), documents


def _reason_to_skip(text: str, config: PrepareConfig) -> str | None:
    """Which of FILTERED leaves a text out, if any."""
    if not text.strip():
        return "empty"
    if len(text) < config.min_characters:
        return "too short"
    if len(text) > config.max_characters:
        return "too long"
    return None


def _write(folder: Path, unit: Unit, documents: list[Document]) -> None:
    texts = [document.text.encode() for document in documents]
    columns: dict[str, list[int] | list[str]] = {"bytes": [len(text) for text in texts]}
    for field in FIELDS:
        columns[field] = [getattr(document, field) for document in documents]
    about = json.dumps({"unit": asdict(unit), "documents": columns}, ensure_ascii=False)
    with whole_file(folder / f"{unit.name}.txt") as file:
        file.writelines(texts)
    with whole_file(folder / f"{unit.name}.json") as file:
        file.write(about.encode("utf-8", "backslashreplace"))


def _name(stem: str, number: int) -> str:
    return f"{stem}-{number:06d}"


def complete_units(folder: Path, stem: str) -> list[Unit]:
    """The units that are whole, in order, up to the first that is not."""
    units: list[Unit] = []
    while (path := folder / f"{_name(stem, len(units))}.json").exists():
        units.append(Unit(**read_json(path)["unit"]))
    return units


def read_unit(folder: Path, unit: Unit) -> Iterator[Document]:
    """The documents of a unit, their texts in NFC, read one by one.

    Raises DataError for a unit that is cut short, or of an older version.
    """
    remedy = f"remove the folder {str(folder)!r} and prepare again"
    columns = read_json(folder / f"{unit.name}.json")["documents"]
    if not isinstance(columns, dict):  # they were a list of records once
        raise DataError(f"{folder / unit.name}.json: of an older version; {remedy}")
    fields = zip(*(columns[field] for field in FIELDS), strict=True)
    with (folder / f"{unit.name}.txt").open("rb", buffering=MEGABYTE) as file:
        for size, (name, language, domain, title) in zip(columns["bytes"], fields, strict=True):
            text = file.read(size)
            if len(text) != size:
                raise DataError(f"{folder / unit.name}.txt: cut short; {remedy}")
            yield Document(name, language, domain, title, text.decode("utf-8"))
