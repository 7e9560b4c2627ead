"""How a table of the configuration becomes a frozen, checked class with errors of one
line.
"""

import ast
import dataclasses
import datetime
import difflib
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar, dataclass_transform

import pydantic

from slm2_minimal.config.errors import ConfigError, shown
from slm2_minimal.config.files import preset_path, read_tables
from slm2_minimal.config.paths import expand

Class = TypeVar("Class", bound=type)

LARGEST = 2**53  # JSON's whole numbers are exact up to there
Count = Annotated[int, pydantic.Field(ge=0, le=LARGEST)]
PositiveInt = Annotated[int, pydantic.Field(gt=0, le=LARGEST)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
# far above what fp32 takes for 0: x / 0 is no number
Epsilon = Annotated[float, pydantic.Field(ge=1e-20, le=1)]
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
            raise ConfigError(f"{cls.table_name} = {shown(table)}: must be a table of fields")
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
        return cls.from_tables(read_tables(preset_path(name)))

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> Self:
        """This section out of all tables of a file."""
        return cls.from_table(tables.get(cls.table_name, {}))


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
                if whole := _whole_numbers(error):
                    __init__(self, *args, **values | whole)
                else:
                    raise ConfigError(_one_line(error, cls)) from None

        checked.__init__ = __init__  # type: ignore[method-assign]
        checked.table_name = table_name  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return make


def _whole_numbers(error: pydantic.ValidationError) -> dict[str, int]:
    """The keys that want an integer and have 1e3 or 5.0, with 1000 and 5."""
    wrong = [each for each in error.errors() if each["type"] == "int_type"]
    decimals = {each["loc"]: each["input"] for each in wrong if isinstance(each["input"], float)}
    return {str(key): int(value) for (key,), value in decimals.items() if value.is_integer()}


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
    value = first["input"]
    if first["type"] == "unexpected_keyword_argument":
        remedy = _where_else(str(key)) or did_you_mean(str(key), cls.fields())
        return f"{place} = {shown(value)}: unknown key; {remedy}"
    message = message[0].lower() + message[1:].replace("valid tuple", "list")
    return f"{place} = {shown(value)}: {message}{_as_it_should_be(first['type'], value)}"


def _as_it_should_be(complaint: str, value: Any) -> str:
    """How a value of the wrong type would be written, where its meaning is plain."""
    if complaint == "bool_type" and str(value).lower() in ("true", "false"):
        return f"; write {str(value).lower()}"
    if complaint == "string_type" and isinstance(value, int | float | datetime.date):
        return "; put it in quotes"
    return ""


def _where_else(key: str) -> str | None:
    """A remedy for a key that stands in the wrong table."""
    for table in Table.__subclasses__():
        if key in table.fields():
            return f"did you mean '{table.table_name}.{key}'?"
    return None


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A remedy for an unknown name."""
    for close in difflib.get_close_matches(name[:80], known, n=1):
        return f"did you mean {close!r}?"
    return f"known are {', '.join(sorted(known))}"


def nearest_multiple(number: int, of: int) -> int:
    """The multiple of `of`, not 0, that lies closest to `number`."""
    return max(1, round(number / of)) * of
