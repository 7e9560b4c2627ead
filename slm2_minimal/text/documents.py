"""Readers of text: local files, folders of them, and data sets of the Hub.

Each gives `Document`s one by one and holds one record in memory. A record needs a field
with its text, and may have `id`, `language`, `domain` and `title`.
"""

import glob
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slm2_minimal.config import DataError, MissingExtraError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SUFFIXES_IN_WORDS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
MAX_LINE_BYTES = 64 * 2**20  # no document is longer; such a line is never held in memory
CONVERT = "convert the file, for example with iconv"
# owner/name or owner/name:configuration
HUB_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?(:[^/:]+)?", re.ASCII)


@dataclass(frozen=True)
class Document:
    """One text. Translations of one another share their id."""

    id: str
    language: str
    domain: str
    title: str
    text: str


def is_validation(document_id: str, percent: int) -> bool:
    """Whether a document is held out: a fixed function of its id.

    So it goes with all its translations, on any machine.
    """
    digest = hashlib.sha256(well_formed(document_id).encode()).digest()
    return int.from_bytes(digest[:8]) % 100 < percent


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair; no file can hold one."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class DocumentReader:
    """Reads what stands at a path; records have their text in `text_field`.

    A record that cannot be used (not UTF-8, not JSON, no text, an over-long line) is an
    error. With `skipped`, it is passed over and counted there by its reason. Missing
    and damaged files are an error in either case.
    """

    text_field: str = "text"
    skipped: Counter[str] | None = None

    def read(self, path: str | Path, root: str | Path | None = None) -> Iterator[Document]:
        """The documents of a file, a folder or a Hub id, in a fixed order.

        Where `path` is one file of the folder `root`, documents without an id get the
        one that they have where the whole folder is read.

        Raises DataError for a path that is none of these, and what the class says.
        """
        local = _home_expanded(path)
        if local.exists():
            base = local if root is None else _home_expanded(root)
            for file in text_files(local):
                stem = file.relative_to(base).parent / file.stem
                yield from self._file(file, stem.as_posix())
        elif isinstance(path, str) and HUB_ID.fullmatch(path) and not path.endswith(SUFFIXES):
            yield from self._hub(path)
        else:
            raise DataError(
                f"path = {str(path)!r}: no such file or folder; give one, or a Hub id owner/name"
            )

    def json_lines(self, path: Path, stem: str) -> Iterator[Document]:
        """The documents of JSON Lines, plain or compressed, one object a line.

        Those without an id are `stem` and the number of their line.
        """
        number = 0
        try:
            with _opened(path) as file:
                for number, line in enumerate(_lines(file), 1):
                    yield from self._json_line(line, f"{path}:{number}", f"{stem}-{number}")
        except (OSError, EOFError, zlib.error) as error:
            where = f"{path}: cannot be read after line {number} ({error})"
            raise DataError(f"{where}; check or copy the file again") from None

    def _file(self, path: Path, stem: str) -> Iterator[Document]:
        if path.name.endswith(".parquet"):
            yield from self._parquet(path, stem)
        elif path.name.endswith(".txt"):
            yield from self._plain_text(path, stem)
        elif path.name.endswith(SUFFIXES):
            yield from self.json_lines(path, stem)
        else:
            raise DataError(f"path = {str(path)!r}: unknown kind of file; give {SUFFIXES_IN_WORDS}")

    def _plain_text(self, path: Path, stem: str) -> Iterator[Document]:
        try:
            text = path.read_text(encoding="utf-8")
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

    def _parquet(self, path: Path, stem: str) -> Iterator[Document]:
        load_dataset = _load_dataset(f"reading {path}")
        files = glob.escape(str(path))
        try:
            rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None
        yield from self._rows(rows, str(path), stem)

    def _hub(self, name: str) -> Iterator[Document]:
        purpose = f"{name!r} is no local file or folder here, and reading it from the Hub"
        load_dataset = _load_dataset(purpose)
        repository, _, subset = name.partition(":")
        try:
            rows = load_dataset(repository, subset or None, split="train", streaming=True)
        except (OSError, ValueError, RuntimeError) as error:  # not found, gated, offline, a script
            raise DataError(
                f"path = {name!r}: neither a local file or folder nor to be had from the Hub"
                f" ({_first_line(error)}); check the path; gated sets need `hf auth login` and"
                " consent on their page"
            ) from None
        yield from self._rows(rows, name, repository.rpartition("/")[2])

    def _rows(self, rows: Iterable[Any], where: str, stem: str) -> Iterator[Document]:
        try:
            for number, row in enumerate(rows):
                yield from self._record(row, f"{where}, row {number}", f"{stem}-{number}")
        except DataError:
            raise
        except (OSError, ValueError) as error:  # what datasets and pyarrow raise for damage
            raise _damaged(where, error) from None

    def _record(self, record: Any, where: str, default_id: str) -> Iterator[Document]:
        text = record.get(self.text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            self._skip(
                "no text",
                f"{where}: has no field {self.text_field!r} that holds a string; rename the field"
                " (a source can name another as its text_field)",
            )
            return

        fields = {"id": well_formed(default_id), "language": "und", "domain": "text", "title": ""}
        for key in fields:
            if record.get(key) not in (None, ""):
                fields[key] = well_formed(str(record[key]))
        yield Document(**fields, text=well_formed(text))

    def _skip(self, reason: str, message: str) -> None:
        """Count an unusable record, or refuse it where nobody counts."""
        if self.skipped is None:
            raise DataError(message)
        self.skipped[reason] += 1


def text_files(path: Path) -> list[Path]:
    """The files of a folder that can be read, sorted; a file is its own list.

    Links are followed. A folder that several of them lead to counts once, and under its
    own name where it stands below `path`.

    Raises DataError for a folder without any.
    """
    path = _home_expanded(path)
    if not path.is_dir():
        return [path]
    files = [f for f in _files_below(path) if f.name.endswith(SUFFIXES) and f.is_file()]
    if not files:
        raise DataError(f"path = {str(path)!r}: no {SUFFIXES_IN_WORDS} file in this folder")
    return sorted(files)


def _files_below(path: Path) -> Iterator[Path]:
    """All files in a folder, linked folders last: each is read where it stands."""
    starts = [str(path)]
    seen: set[str] = set()
    for start in starts:
        for folder, folders, files in os.walk(start):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(folder, name) for name in files)
            inside = [os.path.join(folder, name) for name in sorted(folders)]
            starts += filter(os.path.islink, inside)


def _home_expanded(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # Path.expanduser raises where there is no such user


def _opened(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed by its ending."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        try:
            import pyarrow
        except ImportError:
            raise MissingExtraError("pyarrow", "hf", f"reading {path}") from None
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is longer than MAX_LINE_BYTES."""
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue

        # pass over the rest of the line
        while line and not line.endswith(b"\n"):
            line = file.readline(2**20)
        yield None


def _damaged(where: str | Path, error: Exception) -> DataError:
    return DataError(f"{where}: cannot be read ({_first_line(error)}); check or copy it again")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _load_dataset(purpose: str) -> Callable[..., Iterable[Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingExtraError("datasets", "hf", purpose) from None
    return load_dataset
