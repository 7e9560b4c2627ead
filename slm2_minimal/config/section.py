"""How a table of the configuration becomes a frozen, checked class with errors of one
line.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar, dataclass_transform

import pydantic

from slm2_minimal.config.errors import ConfigError
from slm2_minimal.config.files import preset_path, read_tables
from slm2_minimal.config.paths import expand

Class = TypeVar("Class", bound=type)

Count = Annotated[int, pydantic.Field(ge=0)]
PositiveInt = Annotated[int, pydantic.Field(gt=0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
PathText = Annotated[str, pydantic.AfterValidator(lambda text: expand(text, "path"))]
# TOML has lists, a frozen configuration wants tuples
Strings = Annotated[tuple[str, ...], pydantic.Strict(False)]


class Section:
    """What all sections share; `table_name` is how errors call it."""

    table_name: ClassVar[str]

    @classmethod
    def from_table(cls, table: Any) -> Self:
        """The section from a table of a TOML file. Raises ConfigError."""
        if isinstance(table, cls):
            return table
        if not isinstance(table, Mapping):
            raise ConfigError(f"{cls.table_name} = {table!r}: must be a table of fields")
        return cls(**table)

    @classmethod
    def fields(cls) -> list[str]:
        """The names of the fields, in order."""
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @classmethod
    @functools.cache
    def meanings(cls) -> dict[str, str]:
        """What each key means: the string under its field in the class's source."""
        [source] = ast.parse(inspect.getsource(cls)).body
        assert isinstance(source, ast.ClassDef)
        meanings = {}
        for field, text in itertools.pairwise(source.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                meaning = ast.literal_eval(text.value)
                meanings[ast.unparse(field.target)] = " ".join(meaning.split())
        return meanings

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


class Table(Section):
    """A section that is a table at the top of a run's TOML file."""

    @classmethod
    def preset(cls, name: str) -> Self:
        """This section as the preset `name`, a file's stem in `presets/`, has it."""
        return cls.from_table(read_tables(preset_path(name)).get(cls.table_name, {}))


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(table_name: str) -> Callable[[Class], Class]:
    """A decorator: a frozen keyword-only dataclass whose values are checked."""
    options = pydantic.ConfigDict(extra="forbid", strict=True)

    def make(cls: Class) -> Class:
        checked = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=options)(cls)
        validate = checked.__init__

        def __init__(self: Any, *args: Any, **values: Any) -> None:
            try:
                validate(self, *args, **values)
            except pydantic.ValidationError as error:
                raise ConfigError(_one_line(error, cls)) from None

        checked.__init__ = __init__  # type: ignore[method-assign]
        checked.table_name = table_name  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return make


def _one_line(error: pydantic.ValidationError, cls: Any) -> str:
    """The first complaint of pydantic as `table.field = value: remedy`."""
    first = error.errors()[0]
    message = first["msg"]
    key, *inside = first["loc"] or ("",)
    place = f"{cls.table_name}.{key}"

    # one of our own errors, which has said everything; a section inside this one has
    # called itself by its short name
    if first["type"] == "value_error":
        message = message.removeprefix("Value error, ")
        for step in inside:
            place += f"[{step}]" if isinstance(step, int) else f".{step}"
        return message if key == "" else re.sub(r"^\w+", lambda _: place, message)

    if first["type"] == "missing":
        return f"{place} = nothing: must be given"
    if first["type"] == "unexpected_keyword_argument":
        remedy = _where_else(str(key)) or did_you_mean(str(key), cls.fields())
        return f"{place} = {first['input']!r}: unknown key; {remedy}"
    message = message[0].lower() + message[1:].replace("valid tuple", "list")
    return f"{place} = {first['input']!r}: {message}"


def _where_else(key: str) -> str | None:
    """A remedy for a key that stands in the wrong table."""
    for table in Table.__subclasses__():
        if key in table.fields():
            return f"did you mean '{table.table_name}.{key}'?"
    return None


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A remedy for an unknown name."""
    for close in difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close!r}?"
    return f"known are {', '.join(sorted(known))}"


def nearest_multiple(number: int, of: int) -> int:
    """The multiple of `of`, not 0, that lies closest to `number`."""
    return max(1, round(number / of)) * of
