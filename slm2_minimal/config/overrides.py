"""Keys on the command line, `--section.field value`, laid over a file's tables."""

import re
import tomllib
from collections.abc import Iterable
from typing import Any, get_type_hints

from slm2_minimal.config.errors import ConfigError, shown
from slm2_minimal.config.section import Table
from slm2_minimal.config.sources import SourceConfig

KEY = re.compile(r"--[^=]*\.")


def integer(text: str) -> int:
    """A whole number as it is typed: 1000, 1e3 or 1000.0. Raises ValueError."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def split_overrides(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """(overrides, all other words): `--section.field` takes the word behind it."""
    words = list(arguments)
    overrides: list[str] = []
    others: list[str] = []
    while words:
        word = words.pop(0)
        if not KEY.match(word):
            others.append(word)
            continue
        overrides.append(word)
        if "=" not in word and words and not words[0].startswith("--"):
            overrides.append(words.pop(0))
    return overrides, others


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """`["--train.steps", "10", "--model.use_qkv_bias=false"]` as `{"train.steps": 10,
    "model.use_qkv_bias": False}`.

    Values are TOML values, or True and False; what does not parse as one is taken as a
    string. A key that holds text takes it as typed: a folder may be called 2024, or
    2024-05-01.
    """
    overrides: dict[str, Any] = {}
    words = list(arguments)
    while words:
        option, equals, value = words.pop(0).partition("=")
        key = option.removeprefix("--")
        if not KEY.match(option):
            raise ConfigError(
                f"argument = {option!r}: unknown; overrides look like --section.field value, and"
                " --help shows the rest"
            )
        if not equals and (not words or KEY.match(words[0])):
            raise ConfigError(f"{key}: missing; give it a value, {option} VALUE")
        if not equals:
            value = words.pop(0)
        overrides[key] = _parse(key, value)
    return overrides


def lay_over(tables: dict[str, Any], key: str, value: Any) -> None:
    """Set `section.field` in nested tables, making the tables on the way."""
    *parents, last = key.split(".")
    for parent in parents:
        tables = tables.setdefault(parent, {})
        if not isinstance(tables, dict):
            raise ConfigError(
                f"{key} = {shown(value)}: {parent!r} has no fields of its own; name a field that"
                " exists"
            )
    tables[last] = value


def _parse(key: str, text: str) -> Any:
    try:
        # True as Python writes it
        tables = tomllib.loads(f"value = {text.lower() if text in ('True', 'False') else text}")
    except (ValueError, RecursionError):
        return text
    value = tables["value"]
    is_text = _holds_text(key) and not isinstance(value, str | list | dict)
    return text if is_text or len(tables) > 1 else value


def _holds_text(key: str) -> bool:
    """Whether the key's value is text."""
    table, *inside, field = key.split(".")
    kinds: dict[str, type] = {kind.table_name: kind for kind in Table.__subclasses__()}
    if inside[:1] == ["sources"]:
        kinds, inside = {"data": SourceConfig}, []
    if inside:  # [prepare.benchmarks] has names of its own
        return key.startswith("prepare.benchmarks.")
    hint = get_type_hints(kinds[table]).get(field) if table in kinds else None
    return hint in (str, str | None)
