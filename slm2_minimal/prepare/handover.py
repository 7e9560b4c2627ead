"""What one stage leaves for another, and that it is read as it was written.

Beside every such file stands its seal, `NAME.sha256`, written last: where it stands,
the file is complete. A reader holds the file against it.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from slm2_minimal.config import DataError
from slm2_minimal.files import sha256, whole_file

Kind = TypeVar("Kind")

AGAIN = "remove the folder 'work' there, and run the same again"

adapter: Any = functools.cache(TypeAdapter)


@contextmanager
def sealing(path: Path) -> Iterator[Path]:
    """A path whose folder is there, to write to; sealed when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    seal(path)


def seal(path: Path) -> None:
    """Say that a file is complete, and what it holds."""
    with whole_file(f"{path}.sha256") as file:
        file.write(sha256(path).encode())


def remove(path: Path) -> None:
    """Remove a file, its seal first: without it, it counts as not there."""
    Path(f"{path}.sha256").unlink(missing_ok=True)
    path.unlink()


def is_sealed(path: Path) -> bool:
    """Whether a file is there, and complete."""
    return path.exists() and Path(f"{path}.sha256").exists()


def sealed(path: Path) -> Path:
    """The path of a file that is as it was sealed. Raises DataError for any other."""
    try:
        if sha256(path) == Path(f"{path}.sha256").read_text("latin-1"):
            return path
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: is missing; {AGAIN}") from None
    raise DataError(f"{path}: was altered after it was written; {AGAIN}")


def write_record(path: Path, content: object) -> None:
    """Write a dataclass or a list as sealed JSON."""
    plain = adapter(type(content)).dump_python(content, mode="json")
    text = json.dumps(plain, ensure_ascii=False)
    with sealing(path), whole_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def read_record(path: Path, kind: type[Kind]) -> Kind:
    """What `write_record` wrote. Raises DataError where it is not as it was."""
    return read_checked(sealed(path), kind, AGAIN)


def read_checked(path: Path, kind: type[Kind], remedy: str) -> Kind:
    """A JSON file as `kind`. Raises DataError, with the remedy, where it is none."""
    try:
        return adapter(kind).validate_python(json.loads(path.read_bytes()))
    except OSError as error:
        reason = str(error.strerror)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        reason = f"no JSON, {error}"
    raise DataError(f"{path}: cannot be read ({reason}); {remedy}")
