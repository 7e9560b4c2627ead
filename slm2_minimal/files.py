"""Files that are whole or absent: every file of the project is written here.

Content goes to a neighbour under another name, is flushed to the disk, and takes its
own name in one act. A process that is killed while it writes leaves `NAME.<its
number>.part`, which nobody reads.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.numpy


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write, which appears under its name when the block ends well, or else
    not at all.
    """
    part = Path(f"{path}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """The content of a JSON file, with or without a byte-order mark. Raises OSError
    where it cannot be read, ValueError where it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all."""
    with whole_file(path) as file:
        np.save(file, array, allow_pickle=False)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one safetensors file, whole or not at all."""
    with whole_file(path) as file:
        file.write(safetensors.numpy.save(dict(arrays)))


def sha256(path: Path) -> str:
    """The SHA-256 of a file as it stands on the disk, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """The SHA-256 of what a JSON file says, however it is laid out."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file `path`, made where it is missing, against every other process.

    Raises BlockingIOError where another one holds it. A process that ends lets go, even
    where processes that it forked live longer.
    """
    with path.open("a") as file:
        os.register_at_fork(after_in_child=file.close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems have no locks: there nobody is kept out.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield


def flush(path: Path) -> None:
    """Have the disk hold a file or a folder's list of names, also across a power
    cut.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `path` when the block ends well, or else
    is gone, with the folders above it that had to be made.

    Raises:
        OSError: FileExistsError where something is there that is no empty folder, or
        what stands in the way of writing; before anything is done.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "is there already", str(path))
    above = [folder for folder in path.parents if not folder.exists()]
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        flush(part)
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for folder in above:
            with suppress(OSError):  # not made yet, or another's by now
                folder.rmdir()
        raise
