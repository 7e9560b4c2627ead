"""How a table of the configuration becomes a frozen, checked dataclass with errors of
one line.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import pydantic

from slm2_minimal.config.errors import ConfigError

Class = TypeVar("Class", bound=type)
_FIELDS: dict[str, list[str]] = {}  # of every table
NO_ADDRESS = (
    "run",
    "source",
    "stage",
)  # tables that are named otherwise in a file and on the command line


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: Class) -> Class:
    """Make `cls` a frozen keyword-only dataclass whose values are checked, with errors
    of one line.
    """
    options = pydantic.ConfigDict(extra="forbid", strict=True)
    checked = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=options)(cls)
    validate = checked.__init__

    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            validate(self, *args, **values)
        except pydantic.ValidationError as error:
            raise ConfigError(_one_line(error, cls)) from None

    checked.__init__ = __init__  # type: ignore[method-assign]
    _FIELDS[vars(cls)["_table"]] = [field.name for field in dataclasses.fields(checked)]
    return checked  # type: ignore[return-value]


def _one_line(error: pydantic.ValidationError, cls: Any) -> str:
    """The first complaint of pydantic as `table.field = value: remedy`."""
    first = error.errors()[0]
    if not first["loc"]:  # raised by __post_init__, which has said everything
        return first["msg"].removeprefix("Value error, ")
    name = str(first["loc"][0])
    field = f"{cls._table}.{name}"
    if first["type"] == "missing":
        return f"{field} = nothing: must be given"
    if first["type"] == "unexpected_keyword_argument":
        elsewhere = [
            f"{table}.{name}"
            for table, fields in _FIELDS.items()
            if name in fields and table not in NO_ADDRESS
        ]
        remedy = (
            f"did you mean {elsewhere[0]!r}?"
            if elsewhere
            else did_you_mean(name, _FIELDS[cls._table])
        )
        return f"{field} = {first['input']!r}: unknown key; {remedy}"
    return (
        f"{field} = {first['input']!r}:"
        f" {first['msg'][0].lower() + first['msg'][1:].replace('valid tuple', 'list')}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
