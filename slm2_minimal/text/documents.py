"""PLACE: say what this is."""

import glob
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slm2_minimal.config import DataError, MissingExtraError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


MAX_LINE_BYTES = (
    64 * 2**20
)  # a longer line of JSON is no document; it is passed over without being held in memory


HUB_ID = re.compile(
    r"\w([\w.-]*\w)?/\w([\w.-]*\w)?(:[^/:]+)?", re.ASCII
)  # owner/name or owner/name:configuration


@dataclass(frozen=True)
class Document:
    """One text. Translations of one another share their id."""

    id: str
    language: str
    domain: str
    title: str
    text: str


@dataclass(frozen=True)
class _Reading:
    """How records are read: the field that has the text, and where those that cannot be
    used are counted, if anywhere.
    """

    text_field: str = "text"
    skipped: Counter[str] | None = None

    def skip(self, reason: str, message: str) -> None:
        """Count a record that cannot be used, or refuse it where nobody counts."""
        if self.skipped is None:
            raise DataError(message)
        self.skipped[reason] += 1


def is_validation(document_id: str, percent: int) -> bool:
    """Whether a document is held out: a fixed function of its id, so it goes with all
    its translations, on any machine.
    """
    return (
        percent > 0
        and int.from_bytes(hashlib.sha256(_valid(document_id).encode()).digest()[:8]) % 100
        < percent
    )


def _documents_at(path: str | Path, root: str | Path | None, how: _Reading) -> Iterator[Document]:
    local = _home_expanded(path)
    if local.exists():
        above = local if root is None else _home_expanded(root)
        for file in text_files(local):
            yield from _file(file, (file.relative_to(above).parent / file.stem).as_posix(), how)
    elif isinstance(path, str) and HUB_ID.fullmatch(path) and not path.endswith(SUFFIXES):
        yield from _hub(path, how)
    else:
        raise DataError(
            f"path = {str(path)!r}: no such file or folder; give one, or a Hub id owner/name"
        )


def _home_expanded(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # Path.expanduser raises where there is no such user


def text_files(path: Path) -> list[Path]:
    """The files of a folder that can be read, sorted; a file is its own list. Raises
    DataError for a folder without any.

    Links are followed. A folder that several of them lead to counts once, and under its
    own name where it stands below `path`.
    """
    path = _home_expanded(path)
    if not path.is_dir():
        return [path]
    files = sorted(
        file for file in _files_below(path) if file.is_file() and file.name.endswith(SUFFIXES)
    )
    if not files:
        raise DataError(
            f"path = {str(path)!r}: no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file in this"
            " folder"
        )
    return files


def _files_below(path: Path) -> Iterator[Path]:
    """The files in a folder and in all below it. Linked folders come after the others,
    so that each is read where it stands.
    """
    starts, seen = [str(path)], set[str]()
    for start in starts:
        for folder, folders, files in os.walk(start):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(folder, name) for name in files)
            inside = (os.path.join(folder, name) for name in sorted(folders))
            starts += [name for name in inside if os.path.islink(name)]


def _file(path: Path, stem: str, how: _Reading) -> Iterator[Document]:
    """The documents of one file; `stem` is what the ids of those without one begin
    with.
    """
    if path.name.endswith(".parquet"):
        library = _datasets(f"reading {path}")
        try:
            dataset = library.load_dataset(
                "parquet", data_files=glob.escape(str(path)), split="train", streaming=True
            )
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None
        yield from _rows(dataset, str(path), stem, how)
    elif path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        yield from _records(path, stem, how)
    elif path.name.endswith(".txt"):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            how.skip(
                "not UTF-8",
                f"{path}: byte {error.start} is not UTF-8; convert the file, for example with"
                " iconv",
            )
            return
        except OSError as error:
            raise _damaged(path, error) from None
        yield Document(_valid(stem), "und", "text", _valid(path.stem), text)
    else:
        raise DataError(
            f"path = {str(path)!r}: unknown kind of file; give {', '.join(SUFFIXES[:-1])} or"
            f" {SUFFIXES[-1]}"
        )


def _records(path: Path, stem: str, how: _Reading) -> Iterator[Document]:
    """JSON Lines, plain or compressed, one object a line."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(_lines(file), 1):
                where = f"{path}:{number}"
                if line is None:
                    how.skip(
                        "line too long",
                        f"{where}: longer than {MAX_LINE_BYTES >> 20} MiB; every line must be one"
                        " document",
                    )
                elif line.strip():
                    yield from _parsed(line, where, f"{stem}-{number}", how)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read after line {number} ({error}); check or copy the file again"
        ) from None


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
    """The lines of a file; None for one that is longer than MAX_LINE_BYTES, of which
    never more than that is held.
    """
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(2**20)
        yield None


def _parsed(line: bytes, where: str, default_id: str, how: _Reading) -> Iterator[Document]:
    """The document of one line, or nothing where the line is passed over."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        how.skip("not UTF-8", f"{where}: not UTF-8; convert the file, for example with iconv")
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply, or a number of too many digits")
        how.skip("not JSON", f"{where}: not JSON ({reason}); every line must be one object")
    else:
        yield from _document(record, where, default_id, how)


def _hub(name: str, how: _Reading) -> Iterator[Document]:
    repository, _, configuration = name.partition(":")
    library = _datasets(f"{name!r} is no local file or folder here, and reading it from the Hub")
    try:
        dataset = library.load_dataset(
            repository, configuration or None, split="train", streaming=True
        )
    except (OSError, ValueError, RuntimeError) as error:  # not found, gated, offline, script-based
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"path = {name!r}: neither a local file or folder nor to be had from the Hub"
            f" ({reason}); check the path; gated sets need `hf auth login` and consent on their"
            " page"
        ) from None
    yield from _rows(dataset, name, repository.rpartition("/")[2], how)


def _rows(dataset: Any, where: str, stem: str, how: _Reading) -> Iterator[Document]:
    try:
        for number, row in enumerate(dataset):
            yield from _document(row, f"{where}, row {number}", f"{stem}-{number}", how)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # what datasets and pyarrow raise for damaged files
        raise _damaged(where, error) from None


def _damaged(where: str | Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{where}: cannot be read ({reason}); check or copy it again")


def _document(record: Any, where: str, default_id: str, how: _Reading) -> Iterator[Document]:
    text = record.get(how.text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        how.skip(
            "no text",
            f"{where}: has no field {how.text_field!r} that holds a string; rename the field (a"
            " source can name another as its text_field)",
        )
        return
    field = {key: _valid(str(default if record.get(key) in (None, "") else record[key])) for key, default in
             (("id", default_id), ("language", "und"), ("domain", "text"), ("title", ""))}  # fmt: skip
    yield Document(**field, text=_valid(text))


def _valid(text: str) -> str:
    """The text with every half of a surrogate pair, which no encoding can write, as
    U+FFFD.
    """
    return (
        text
        if text.isascii()
        else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "hf", purpose) from None
    return datasets
