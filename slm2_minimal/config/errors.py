"""The errors that a user can cause: one line that names the field, the value and the
remedy.
"""

from typing import Any

LONGEST = 800  # characters of a message; a name may have 10,000


class UserError(ValueError):
    """What a user can cause and mend; the command line prints it and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(UserError):
    """A configuration that cannot be right."""


class DataError(UserError):
    """Text, tokens or files that cannot be used as they are."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run."""


class MissingExtraError(UserError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(
            f"{why} needs the package {package!r}: pip install 'slm2-minimal[{extra}]'"
        )

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return UserError, (str(self),)  # so that it can come from another process


def one_line(text: str) -> str:
    """`text` with its control characters as escapes, and without its middle where it is
    long: what is wrong stands at the beginning, the remedy at the end.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    characters = [char if char.isprintable() else ascii(char)[1:-1] for char in text]
    return "".join(characters)


def shown(value: Any) -> str:
    """A value in a message. Python writes no integer of more than 4,300 digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"
