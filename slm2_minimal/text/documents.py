"""Readers of text: local files, folders of them, and data sets of the Hub.

Each gives `Document`s one by one and holds one record in memory, or the few of a batch.
A record needs a field with its text, and may have `id`, `language`, `domain` and
`title`.
"""

import codecs
import functools
import gzip
import hashlib
import importlib
import itertools
import json
import logging
import os
import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import regex

from slm2_minimal.config import DataError, MissingExtraError
from slm2_minimal.config.paths import expand

log = logging.getLogger(__name__)

Record = TypeVar("Record")

COMPRESSED = (".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst", ".json.gz", ".json.zst")
JSON_LINES = (".jsonl", ".ndjson", *COMPRESSED)
SUFFIXES = (".txt", *JSON_LINES, ".parquet")
SUFFIXES_IN_WORDS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
FIELDS = ("id", "language", "domain", "title")
MAX_LINE_BYTES = 64 * 2**20  # no document is longer; such a line is never held in memory
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
ROWS = 256  # of a Parquet file, held at a time
CONVERT = "convert the file, for example with iconv"
# owner/name, with a configuration as in owner/name:de, a split as in owner/name@test
HUB_ID = regex.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?(:[^/:@]+)?(@\w+)?", regex.ASCII)
_TWO_MARKS = regex.compile(r"\p{M}{2}")
_MANY_MARKS = regex.compile(r"\p{M}{64,}")


@dataclass(frozen=True)
class Document:
    """One text. Translations of one another share their id."""

    id: str
    language: str
    domain: str
    title: str
    text: str


def is_validation(document_id: str, percent: int) -> bool:
    """Whether a document is held out, with its translations: a function of its id."""
    digest = hashlib.sha256(well_formed(document_id).encode()).digest()
    return int.from_bytes(digest[:8]) % 100 < percent


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair; no file can hold one."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def nfc(text: str) -> str:
    """The text, well formed, in NFC.

    Long runs of combining marks are put in order before: Python takes a time for them
    that grows with the square of their length.
    """
    if text.isascii():
        return text
    text = well_formed(text)
    if _TWO_MARKS.search(text[::32]):  # a cheap sample, which shows every long run
        text = _MANY_MARKS.sub(_ordered, text)
    return unicodedata.normalize("NFC", text)


def _ordered(run: "regex.Match[str]") -> str:
    """A run of marks in Unicode's canonical order, decomposed."""
    marks = "".join(unicodedata.normalize("NFD", mark) for mark in run[0])
    groups = itertools.groupby(marks, key=lambda mark: unicodedata.combining(mark) > 0)
    return "".join("".join(sorted(group, key=unicodedata.combining)) for _, group in groups)


@dataclass(frozen=True)
class DocumentReader:
    """Reads what stands at a path; records have their text in `text_field`.

    A record that cannot be used (not UTF-8, not JSON, no text, an over-long line) is an
    error, or with `skipped` passed over and counted there by its reason. Missing and
    damaged files are an error in either case.
    """

    text_field: str = "text"
    skipped: Counter[str] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields that may hold a record's text."""
        return (self.text_field,)

    def read(self, path: str | Path, root: str | Path | None = None) -> Iterator[Document]:
        """The documents of a file, a folder or a Hub id, in a fixed order.

        Where `path` is one file of the folder `root`, ids are made as where the whole
        folder is read. Raises DataError for a path that is none of these.
        """
        local = Path(expand(str(path), "path"))
        if _mode(local):
            base = local if root is None else Path(expand(str(root), "path"))
            for file in text_files(local):
                stem = file.relative_to(base).parent / file.stem
                yield from self._file(file, stem.as_posix())
        elif isinstance(path, str) and is_hub_id(path):
            yield from self._hub(path)
        else:
            raise DataError(
                f"path = {str(path)!r}: no such file or folder; give one, or a Hub id owner/name"
            )

    def json_lines(self, path: Path, stem: str) -> Iterator[Document]:
        """The documents of JSON Lines, plain or compressed; those without an id are
        `stem` and the number of their line.
        """
        for number, line in enumerate(_unbroken(_lines(path), path, "line"), 1):
            yield from self._json_line(line, f"{path}:{number}", f"{stem}-{number}")

    def _file(self, path: Path, stem: str) -> Iterator[Document]:
        name = path.name.lower()
        if name.endswith(".parquet"):
            yield from self._rows(_parquet_rows(path, (*self.columns, *FIELDS)), str(path), stem)
        elif name.endswith(".txt"):
            yield from self._plain_text(path, stem)
        elif name.endswith(JSON_LINES):
            yield from self.json_lines(path, stem)
        else:
            raise DataError(f"path = {str(path)!r}: unknown kind of file; give {SUFFIXES_IN_WORDS}")

    def _plain_text(self, path: Path, stem: str) -> Iterator[Document]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            self._skip("not UTF-8", f"{path}: byte {error.start} is not UTF-8; {CONVERT}")
        except OSError as error:
            raise _damaged(path, error) from None
        else:
            yield Document(well_formed(stem), "und", "text", well_formed(path.stem), text)

    def _json_line(self, line: bytes | None, where: str, default_id: str) -> Iterator[Document]:
        """The document of one line, or nothing where it is blank or passed over."""
        if line is None:
            size = f"longer than {MAX_LINE_BYTES >> 20} MiB"
            self._skip("line too long", f"{where}: {size}; every line must be one document")
            return
        line = line.removeprefix(codecs.BOM_UTF8)  # of a file, or of one that was put behind others
        if not line.strip():
            return

        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            self._skip("not UTF-8", f"{where}: not UTF-8; {CONVERT}")
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply, or a number of too many digits")
            self._skip("not JSON", f"{where}: not JSON ({reason}); every line must be one object")
        else:
            yield from self._record(record, where, default_id)

    def _hub(self, name: str) -> Iterator[Document]:
        purpose = f"{name!r} is no local file or folder here, and reading it from the Hub"
        load_dataset = _imported("datasets", purpose).load_dataset
        place, _, split = name.partition("@")
        repository, _, subset = place.partition(":")
        try:
            rows = load_dataset(repository, subset or None, split=split or "train", streaming=True)
        except (OSError, ValueError, RuntimeError) as error:  # not found, gated, offline, a script
            raise DataError(
                f"path = {name!r}: neither a local file or folder nor to be had from the Hub"
                f" ({_reason(error)}); check the path; gated sets need `hf auth login` and"
                " consent on their page"
            ) from None
        yield from self._rows(rows, name, repository.rpartition("/")[2])

    def _rows(self, rows: Iterable[dict[str, Any]], where: str, stem: str) -> Iterator[Document]:
        """The documents of records whose strings may be bytes, UTF-8 or not."""
        for number, row in enumerate(_unbroken(rows, where)):
            place = f"{where}, row {number}"
            record = {name: row[name] for name in (*self.columns, *FIELDS) if name in row}
            try:
                for name, value in record.items():
                    record[name] = value.decode("utf-8") if isinstance(value, bytes) else value
            except UnicodeDecodeError:
                self._skip("not UTF-8", f"{place}: not UTF-8; {CONVERT}")
            else:
                yield from self._record(record, place, f"{stem}-{number}")

    def _record(self, record: Any, where: str, default_id: str) -> Iterator[Document]:
        text = self._text(record if isinstance(record, dict) else {}, where)
        if text is None:
            return

        fields = {"id": well_formed(default_id), "language": "und", "domain": "text", "title": ""}
        for key in FIELDS:
            if record.get(key) not in (None, ""):
                fields[key] = well_formed(str(record[key]))
        yield Document(**fields, text=well_formed(text))

    def _text(self, record: Mapping[str, Any], where: str) -> str | None:
        """A record's text, or None where it is passed over."""
        text = record.get(self.text_field)
        if isinstance(text, str):
            return text
        complaint = f"{where}: has no field {self.text_field!r} that holds a string"
        remedy = (
            "mend this record, or if all are like it, rename the field (a source can name another"
            " as its text_field)"
        )
        self._skip("no text", f"{complaint}; {remedy}")
        return None

    def _skip(self, reason: str, message: str) -> None:
        """Count an unusable record, or refuse it where nobody counts."""
        if self.skipped is None:
            raise DataError(message)
        self.skipped[reason] += 1


def text_files(path: Path) -> list[Path]:
    """The files of a folder that can be read, sorted; a file is its own list.

    Hidden ones (`.git`) hold no text; other kinds are passed over with a warning. Links
    are followed; a folder that several lead to counts once, under its own name where it
    stands below `path`.

    Raises:
        DataError: a folder without any, or one that cannot be read; what has the name
        of a text, but is a broken link, a pipe or a device.
    """
    path = Path(expand(str(path), "path"))
    files = [path]
    if stat.S_ISDIR(_mode(path)):
        below = sorted(_files_below(path))
        files = [file for file in below if _is_text(file.name)]
        if not files:
            raise DataError(f"path = {str(path)!r}: no {SUFFIXES_IN_WORDS} file in this folder")
        if others := [file for file in below if not _is_text(file.name)]:
            example = f"such as {others[0].name!r}"
            _warn_once(f"path = {str(path)!r}: {len(others)} other files are not read, {example}")
    for file in files:
        if not stat.S_ISREG(_mode(file)):
            remedy = "a text may be read again; give a copy of it"
            raise DataError(f"path = {str(file)!r}: no file, but a broken link or a pipe; {remedy}")
    return files


def is_hub_id(path: str) -> bool:
    """Whether a path that is not there can be a data set's name on the Hub."""
    return HUB_ID.fullmatch(path) is not None and not _is_text(path)


def _is_text(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _files_below(path: Path) -> Iterator[Path]:
    """All files in a folder, linked folders last: each is read where it stands."""

    def refuse(error: OSError) -> None:
        raise _damaged(error.filename, error)

    starts = [str(path)]
    seen: set[str] = set()
    for start in starts:
        for folder, folders, files in os.walk(start, onerror=refuse):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (Path(folder, name) for name in files if not name.startswith("."))
            inside = [os.path.join(folder, name) for name in folders]
            starts += filter(os.path.islink, inside)


def _mode(path: Path) -> int:
    """What stands at a path, as `stat` says; 0 for nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:  # no permission, a circle of links, no such name
        raise _damaged(path, error) from None


def _opened(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed by its ending.

    Held of a .zst file is its window: 8 MB as a rule, 2 GiB where it was made with
    `zstd --long=31`.
    """
    kind = path.suffix.lower()
    zstd = _imported(ZSTD, f"reading {path}") if kind == ".zst" else None
    if kind in (".gz", ".zst") and not path.stat().st_size:
        raise EOFError("it is empty, which no compressed file is")
    if zstd:
        return zstd.open(path, options={zstd.DecompressionParameter.window_log_max: 31})
    return gzip.open(path) if kind == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is longer than MAX_LINE_BYTES."""
    with _opened(path) as file:
        while line := file.readline(MAX_LINE_BYTES):
            if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
                yield line
                continue

            # pass over the rest of the line
            while line and not line.endswith(b"\n"):
                line = file.readline(2**20)
            yield None


def _parquet_rows(path: Path, fields: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file, with those of `fields` that it has; strings are bytes."""
    pyarrow = _imported("pyarrow", f"reading {path}")
    parquet = _imported("pyarrow.parquet", f"reading {path}")
    options = {"buffer_size": 2**20, "page_checksum_verification": True}
    with path.open("rb") as file, parquet.ParquetFile(file, **options) as table:
        columns = [name for name in table.schema_arrow.names if name in fields]
        if len(set(columns)) < len(columns):
            raise ValueError(f"two of its columns have one name: {', '.join(columns)}")

        for batch in table.iter_batches(ROWS, columns=columns):
            for number, column in enumerate(batch.schema):
                kind = column.type
                if pyarrow.types.is_dictionary(kind):
                    kind = kind.value_type
                if kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
                    as_bytes = batch.column(number).cast(pyarrow.large_binary())
                    batch = batch.set_column(number, column.name, as_bytes)
            yield from batch.to_pylist()


def _unbroken(records: Iterable[Record], where: str | Path, kind: str = "") -> Iterator[Record]:
    """The records; where there is damage, DataError says so, and after which `kind`."""
    number = 0
    try:
        for record in records:
            number += 1
            yield record
    except MissingExtraError:
        raise
    except Exception as error:  # gzip, zstd, pyarrow and the Hub have many kinds for damage
        raise _damaged(where, error, f" after {kind} {number}" if kind else "") from None


@functools.lru_cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _damaged(where: str | Path, error: Exception, extent: str = "") -> DataError:
    return DataError(f"{where}: cannot be read{extent} ({_reason(error)}); check or copy it again")


def _reason(error: Exception) -> str:
    message = getattr(error, "strerror", None) or str(error)
    return message.splitlines()[0] if message else type(error).__name__


def _imported(module: str, purpose: str) -> Any:
    """A module of the extra `hf`."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module if module == ZSTD else module.partition(".")[0]
        raise MissingExtraError(package, "hf", purpose) from None
