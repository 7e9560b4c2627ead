"""Units: a source's text as it was read and filtered, in pieces of even size, whatever
files it came in.

A unit is what one process works on at a time, and becomes one shard. It is two files:
`NAME.txt`, the documents' UTF-8 end to end, and, written last, `NAME.json`, what is
known of each, and how far the source had been read. Beside them, `SOURCE.inputs` says
which files were read: units of files that have changed are not gone on from.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slm2_minimal.config import DataError, PrepareConfig, SourceConfig
from slm2_minimal.data.reading import read_source
from slm2_minimal.files import whole_file
from slm2_minimal.prepare import handover
from slm2_minimal.text.documents import Document, nfc, text_files

MEGABYTE = 1_000_000
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
class _Contents:
    """What `NAME.json` holds."""

    unit: Unit
    documents: list[tuple[int, str, str, str, str]]  # bytes of text, id, language, domain, title


def ingest(
    folder: Path,
    source: str,
    how: SourceConfig,
    config: PrepareConfig,
    part: int | None = None,
    paths: Sequence[str | None] = (),
) -> list[Unit]:
    """Read, filter and write the units of a source, or of its `part`: some `paths`.

    Units that are there already are not written again. Held is the text of one unit.

    Raises:
        DataError: the source cannot be read, or has changed since a part of it was. Of
        local files that cannot be read, no unit stays: their text may be damaged too.
    """
    stem = source if part is None else f"{source}-{part:06d}"
    paths = paths or [how.path]
    units = complete_units(folder, stem)
    local = hold_inputs(folder / f"{stem}.inputs", paths, begun=bool(units))
    if units and units[-1].last:
        return units
    complete = {unit.name for unit in units}
    try:
        for unit, documents in _cut(stem, source, how, config, paths):
            if unit.name not in complete:
                _write(folder, unit, documents)
                units.append(unit)
            del documents  # before the next ones are read
    except DataError:
        for unit in units if local else []:
            handover.remove(folder / f"{unit.name}.json")
        raise
    return units


def local_files(path: str | None) -> list[tuple[str, os.stat_result]]:
    """The files that are read at a path; none for the corpus and the Hub."""
    if path is None or not Path(path).exists():
        return []
    return [(str(file), file.stat()) for file in text_files(Path(path))]


def hold_inputs(record: Path, paths: Sequence[str | None], *, begun: bool) -> bool:
    """Note which local files are read, if any, with size and time of the last change.

    Once `begun`, they must stay the same: raises DataError for files that have changed.
    """
    files = [
        (ascii(name), about.st_size, about.st_ctime_ns)
        for path in paths
        for name, about in local_files(path)
    ]
    if not begun:
        handover.write_record(record, files)
    elif files != handover.read_record(record, list[tuple[str, int, int]]):
        changed = ", ".join(str(path) for path in paths)
        raise DataError(f"path = {changed!r}: changed since {record} was written; {handover.AGAIN}")
    return bool(files)


def _cut(
    stem: str, source: str, how: SourceConfig, config: PrepareConfig, paths: Sequence[str | None]
) -> Iterator[tuple[Unit, list[Document]]]:
    """The units of a source or a part, each with its documents."""
    skipped = Counter[str]()
    documents: list[Document] = []
    number = 0
    size = 0
    read = 0

    def unit(last: bool) -> Unit:
        name = f"{stem}-{number:06d}"
        return Unit(name, source, len(documents), size, read, dict(skipped), last)

    for document in read_source(how, skipped, paths):
        read += 1
        text = nfc(document.text)
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
    path = folder / f"{unit.name}.txt"
    with handover.sealing(path), whole_file(path) as file:
        file.writelines(texts)
    rows = [
        (len(text), document.id, document.language, document.domain, document.title)
        for text, document in zip(texts, documents, strict=True)
    ]
    handover.write_record(path.with_suffix(".json"), _Contents(unit, rows))


def complete_units(folder: Path, stem: str) -> list[Unit]:
    """The units that are whole, in order, up to the first that is not."""
    units: list[Unit] = []
    while handover.is_sealed(path := folder / f"{stem}-{len(units):06d}.json"):
        units.append(handover.read_record(path, _Contents).unit)
    return units


def read_unit(folder: Path, unit: Unit) -> Iterator[Document]:
    """The documents of a unit, one by one. Raises DataError for a unit that is not as
    it was written.
    """
    about = handover.read_record(folder / f"{unit.name}.json", _Contents)
    with handover.sealed(folder / f"{unit.name}.txt").open("rb", buffering=MEGABYTE) as file:
        for size, name, language, domain, title in about.documents:
            text = file.read(size).decode("utf-8")
            yield Document(name, language, domain, title, text)
