"""Every key of a run with its value and its meaning, as `slm2 train --help` lists them.

What a key means stands under its field, in `sections` and `sources`.
"""

import dataclasses
import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from slm2_minimal.config.run import RunConfig
from slm2_minimal.config.section import Section
from slm2_minimal.config.sources import SourceConfig

WIDTH = 100
MEANING_COLUMN = 40


def manual(config: RunConfig) -> str:
    """All keys of `config`, one paragraph for each table."""
    paragraphs = []
    for name in RunConfig.fields():
        lines = list(_entries(f"--{name}", getattr(config, name)))
        if name == "data":
            lines += _entries("--data.sources.NAME", SourceConfig())
        paragraphs.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(paragraphs)


def _entries(prefix: str, table: Section) -> Iterator[str]:
    """For each key the options that set its value, then its meaning and choices."""
    for field in dataclasses.fields(table):  # type: ignore[arg-type]
        option, value = f"{prefix}.{field.name}", getattr(table, field.name)
        options = [f"  {option} {_shell(value)}"]
        if isinstance(value, Mapping) and value:
            options = [f"  {option}.{name} {_shell(inner)}" for name, inner in value.items()]
        yield from options[:-1]

        meaning = table.meanings()[field.name]
        if get_origin(field.type) is Literal:
            meaning += f" One of {', '.join(get_args(field.type))}."

        # beside the last option, or below where that is long
        indent = " " * MEANING_COLUMN
        text = textwrap.wrap(meaning, WIDTH, initial_indent=indent, subsequent_indent=indent)
        if len(options[-1]) < MEANING_COLUMN - 1:
            text[0] = options[-1].ljust(MEANING_COLUMN) + text[0].lstrip()
        else:
            yield options[-1]
        yield from text


def _shell(value: Any) -> str:
    """A value as it would be typed in a shell."""
    if value is None:
        return "(not set)"
    return shlex.quote(value if isinstance(value, str) else toml_value(value))


def toml_value(value: Any) -> str:
    """A value as TOML writes it, in one line; of a section, what is not its default."""
    if isinstance(value, Section):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        changed = [field.name for field in fields if getattr(value, field.name) != field.default]
        return toml_value({name: getattr(value, name) for name in changed})
    if isinstance(value, Mapping):
        inside = [f"{_toml_key(key)} = {toml_value(inner)}" for key, inner in value.items()]
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
