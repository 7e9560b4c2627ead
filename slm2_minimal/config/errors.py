"""The errors that a user can cause: one line that names the field, the value and the
remedy.
"""


class UserError(ValueError):
    """What a user can cause and mend; the command line prints it and exits with 2."""


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
