"""Where two configurations differ."""

from typing import Any


def first_difference(
    theirs: dict[str, Any], ours: dict[str, Any], prefix: str = ""
) -> tuple[str, Any, Any]:
    """(dotted field, their value, ours) of the first difference; ("", ...) for none."""
    for key in ours | theirs:
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            field, a, b = first_difference(a, b, f"{prefix}{key}.")
            if field:
                return field, a, b
        elif a != b:
            return f"{prefix}{key}", a, b
    return "", None, None
