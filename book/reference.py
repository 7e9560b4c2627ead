"""Writes `book/reference.md`: every key of a run's TOML file, from the package.

    python book/reference.py

Types and bounds are those that the package checks, meanings the strings under
its fields, so the page cannot say something else than the code does.
"""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from slm2_minimal.config import RunConfig, SourceConfig, StageConfig
from slm2_minimal.config.keys import toml_value
from slm2_minimal.config.section import Section
from slm2_minimal.files import whole_file

PAGE = Path(__file__).with_name("reference.md")
REPORT = "stablelm-2-1_6b"
# A bound that only memory or a C type has tells a reader nothing.
TELLING = 1e5
BOUNDS = {  # JSON schema's words, in the order of the page
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}
HEAD = f"""\
% Written by `python book/reference.py` from what stands in slm2_minimal/config.

# Every key of a run

A run is described by one TOML file with a table for each of the sections below.
What it leaves out has the default. A key that no table has is refused, with the
name that was probably meant, and so is a value that cannot be.

`slm2 train --help` shows the same on the command line, and `slm2 train tiny
--help` shows the values of a configuration in the place of the defaults.

**Presets.** The package brings some of these files, which are called by their
names: `slm2 train tiny`. The column "Report's run" has the values of
`{REPORT}`, the report's run {{cite:p}}`bellagente2024stable`, with our choices
where the report says nothing.

**A base.** A file of your own begins best from a preset, or from the path of
another file, which starts at its own folder:

```toml
base = "{REPORT}"

[data]
prepared = "prepared/mine"

[data.sources]
web = {{ path = "texts/", weight = 3 }}
code = {{ path = "owner/name", weight = 1, text_field = "content" }}

[train]
output_dir = "runs/mine"
```

A key that the file gives replaces the base's, and it replaces it whole: the
sources above are all that the run has, since weights have one sum. A base may
have a base in turn.

**Overrides.** On the command line any key can be laid over both: `slm2 train
mine.toml --train.steps 1000 --data.sources.web.max_epochs 2`. The value is
written as in TOML; what is no TOML value is text. An override changes one key
inside a source and leaves the rest as it is.

**Numbers and paths.** A whole number is written without a point, and is at most
2^53. A decimal in the place of a length in `[schedule]` is a share of
`train.steps`: with `cooldown_start = 0.84` and `cooldown_steps = 0.16` the
cooldown is the last 16% of a run of any length. In every path, `~` is the
user's home.
"""


def page() -> str:
    """The whole page, in MyST Markdown."""
    report = RunConfig.preset(REPORT)
    parts = [HEAD]
    for name in RunConfig.fields():
        section = type(getattr(report, name))
        parts.append(_table(f"[{name}]", section, getattr(report, name)))
        if name == "data":
            parts.append(_table("[data.sources.NAME]", SourceConfig))
            parts.append(_table("[[data.stages]]", StageConfig))
    return "\n".join(parts)


def _table(
    title: str, section: type[Section], report: Section | None = None
) -> str:
    """One table of the file as a table of the page."""
    schema = TypeAdapter(section).json_schema()
    rows = [["Key", "Value", "Default", "Report's run", "Meaning"], ["---"] * 5]
    for key, meaning in section.meanings().items():
        default = "must be given"
        if key not in schema.get("required", []):
            default = _code(getattr(section(), key))
        theirs = "" if report is None else _code(getattr(report, key))
        kind = _kind(schema["properties"][key])
        rows.append([f"`{key}`", kind, default, theirs, _plain(meaning)])
    if report is None:  # it names no sources and no stages
        rows = [[*row[:3], row[4]] for row in rows]
    about = " ".join((section.__doc__ or "").split())
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"## `{title}`", "", about, "", *lines, ""])


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "anyOf" in schema:
        kinds = [_kind(inner) for inner in schema["anyOf"]]
        kinds = [kind for kind in kinds if kind != "null"]
        both = kinds == ["integer", "number"]
        return "number" if both else " or ".join(kinds)
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_code, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}s"
    if schema.get("type") == "object":
        return f"table of {_kind(schema['additionalProperties'])}s"

    kind = schema.get("type", "table")
    kind = {"string": "text", "boolean": "true or false"}.get(kind, kind)
    limits = [
        f"{sign} {schema[name]:g}"
        for name, sign in BOUNDS.items()
        if abs(schema.get(name, TELLING)) < TELLING
    ]
    return " ".join([kind, ", ".join(limits)]).strip()


def _code(value: Any) -> str:
    """A value as it stands in a file."""
    if value is None:
        return "not set"
    return f"`{toml_value(value)}`"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for sign in "\\*_[|<":
        text = text.replace(sign, f"\\{sign}")
    return text


if __name__ == "__main__":
    with whole_file(PAGE) as file:
        file.write(page().encode())
    print(PAGE)
