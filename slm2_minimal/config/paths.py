"""The one rule for every path that a user gives, as a key, an option or an argument."""

import os

from slm2_minimal.config.errors import ConfigError


def expand(text: str, field: str) -> str:
    """`text` as a path, with `~` and `~user` at its beginning replaced.

    Raises ConfigError, which calls the path `field`, for no name, one that no file can
    have, or an unknown user.
    """
    if not text.strip():
        raise ConfigError(f"{field} = {text!r}: no name; give a path, '.' for the current folder")
    if "\0" in text:
        raise ConfigError(f"{field} = {text!r}: no path has a NUL character; leave it out")
    path = os.path.expanduser(text)
    if text.startswith("~") and path == text:
        raise ConfigError(f"{field} = {text!r}: no such user; write './{text}' for a file's name")
    return path
