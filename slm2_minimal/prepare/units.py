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
from itertools import islice
from pathlib import Path
from typing import Any

from slm2_minimal.config import DataError, PrepareConfig, SourceConfig
from slm2_minimal.data.reading import read_source
from slm2_minimal.files import whole_file
from slm2_minimal.text.documents import Document

MEGABYTE = 1_000_000
FIELDS = ("id", "language", "domain", "title")  # of a Document, in its order; its text comes last
FILTERED = (
    "empty",
    "too short",
    "too long",
)  # reasons of the filter; the reader's are those of records that it could not use


@dataclass(frozen=True)
class Unit:
    """One unit, with the counts of its source up to its end: so the next one can go on
    from there.
    """

    name: str
    source: str
    documents: int
    size: int  # bytes of text
    read: int  # documents read from the source so far, the ones left out included
    skipped: dict[str, int]  # left out so far, by reason
    last: bool  # whether the source, or the part, ends here


@dataclass(frozen=True)
class Part:
    """Some of a source's files, where several tasks share the source: None is the
    embedded corpus, a Hub id stands for itself.
    """

    number: int
    paths: Sequence[str | None]

    def stem(self, source: str) -> str:
        """What the names of its units begin with."""
        return f"{source}-{self.number:06d}"


def ingest(
    folder: Path, name: str, source: SourceConfig, config: PrepareConfig, part: Part | None = None
) -> Iterator[Unit]:
    """Read, filter and write the units of a source or a part of it, yielding each as it
    is complete. Units that are there already are not written again.

    Raises:
        DataError: the source cannot be read; the units before the place stay.
    """
    stem = part.stem(name) if part else name
    units = list(complete_units(folder, stem))
    yield from units
    if units and units[-1].last:
        return
    done, skipped = units[-1] if units else None, Counter[str]()
    documents = read_source(source, skipped, part.paths if part else None)
    if done:  # the same documents come in the same order, and are counted as they were
        for _ in islice(documents, done.read):
            pass
        skipped.clear()
        skipped.update(done.skipped)
    number = len(units)
    unit = Unit(_name(stem, number), name, 0, 0, done.read if done else 0, {}, last=False)
    held: list[Document] = []
    for document in documents:
        unit = replace(unit, read=unit.read + 1)
        kept = _filtered(document, config, skipped)
        if kept is None:
            continue
        held.append(kept)
        unit = replace(unit, documents=len(held), size=unit.size + len(kept.text.encode()))
        if unit.size >= config.shard_megabytes * MEGABYTE:
            yield _write(folder, replace(unit, skipped=dict(skipped)), held)
            held = []
            number += 1
            unit = replace(unit, name=_name(stem, number), documents=0, size=0)
    yield _write(folder, replace(unit, skipped=dict(skipped), last=True), held)


def _name(stem: str, number: int) -> str:
    return f"{stem}-{number:06d}"


def complete_units(folder: Path, stem: str) -> Iterator[Unit]:
    """The units of a source or a part that are whole, in order, up to the first that is
    not.
    """
    number = 0
    while (path := folder / f"{_name(stem, number)}.json").exists():
        yield Unit(**json.loads(path.read_text(encoding="utf-8"))["unit"])
        number += 1


def read_unit(folder: Path, unit: Unit) -> Iterator[Document]:
    """The documents of a unit, their texts in NFC."""
    about: Any = json.loads((folder / f"{unit.name}.json").read_text(encoding="utf-8"))["documents"]
    if not isinstance(about, dict):  # they were a list of records once
        raise DataError(
            f"{folder / unit.name}.json: of an older version; remove the folder {str(folder)!r} and"
            " prepare again"
        )
    with (folder / f"{unit.name}.txt").open("rb", buffering=MEGABYTE) as file:
        for size, name, language, domain, title in zip(
            about["bytes"], *(about[field] for field in FIELDS), strict=True
        ):
            text = file.read(size)
            if len(text) != size:
                raise DataError(
                    f"{folder / unit.name}.txt: cut short; remove the folder {str(folder)!r} and"
                    " prepare again"
                )
            yield Document(name, language, domain, title, text.decode("utf-8"))


def _filtered(document: Document, config: PrepareConfig, skipped: Counter[str]) -> Document | None:
    """The document with its text in NFC, or None and a count where it is left out."""
    text = unicodedata.normalize("NFC", document.text)
    checks = (
        not text.strip(),
        len(text) < config.min_characters,
        len(text) > config.max_characters,
    )
    for reason, wrong in zip(FILTERED, checks, strict=True):
        if wrong:
            skipped[reason] += 1
            return None
    return replace(document, text=text)


def _write(folder: Path, unit: Unit, documents: list[Document]) -> Unit:
    texts = [document.text.encode() for document in documents]
    with whole_file(folder / f"{unit.name}.txt") as file:
        file.writelines(texts)
    about = {"bytes": [len(text) for text in texts]} | {
        name: [getattr(document, name) for document in documents] for name in FIELDS
    }
    with whole_file(folder / f"{unit.name}.json") as file:
        file.write(
            json.dumps({"unit": asdict(unit), "documents": about}, ensure_ascii=False).encode(
                "utf-8", "backslashreplace"
            )
        )
    return unit
