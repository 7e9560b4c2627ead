"""Where a configuration comes from: presets, TOML files on top of one another, and
overrides from the command line.
"""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slm2_minimal.config.errors import ConfigError

PRESET_DIR = Path(__file__).parents[1] / "presets"


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.toml"))


def preset_path(name: str) -> Path:
    """The file of a preset."""
    if name not in preset_names():
        raise ConfigError(f"preset = {name!r}: unknown; {_choices()}")
    return PRESET_DIR / f"{name}.toml"


def read_toml(path: str | Path) -> dict[str, Any]:
    """The content of one TOML file. Raises ConfigError where it cannot be read."""
    place = f"config = {str(path)!r}"
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{place}: {error.strerror}; give a readable TOML file or a preset name"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}: not valid TOML ({error}); mend that place") from None


def read_tables(path: Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a TOML file, laid over those of its base.

    `base = "NAME"` at the top of a file names a preset, or the path of a .toml file
    from this one's folder; that may have a base in turn. A key that the file gives
    replaces the base's, and replaces it whole. So [data.sources] are all the sources:
    a mix is one thing, its shares have one sum, and TOML cannot say "without this one".
    `derived` are the files whose base this one is.
    """
    tables = read_toml(path)
    base = tables.pop("base", None)
    if base is None:
        return tables
    chain = (*derived, path.resolve())
    below = _base_path(base, path)
    if below.resolve() in chain:
        raise ConfigError(
            f"base = {base!r}: leads in {str(path)!r} back to where it came from; name a file"
            " that stands on none of these"
        )

    merged = read_tables(below, chain)
    for name, table in tables.items():
        both = isinstance(table, dict) and isinstance(merged.get(name), dict)
        merged[name] = merged[name] | table if both else table
    return merged


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """`["--train.steps", "10", "--model.use_qkv_bias=false"]` as `{"train.steps": 10,
    "model.use_qkv_bias": False}`.

    Values are TOML values; what does not parse as one is taken as a string.
    """
    overrides: dict[str, Any] = {}
    words = list(arguments)
    while words:
        option, equals, value = words.pop(0).partition("=")
        key = option.removeprefix("--")
        if not option.startswith("--") or "." not in key:
            raise ConfigError(
                f"argument = {option!r}: unknown; overrides look like --section.field value, and"
                " --help shows the rest"
            )
        if not equals and not words:
            raise ConfigError(f"{key}: missing; give it a value, {option} VALUE")
        if not equals:
            value = words.pop(0)
        try:
            overrides[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key] = value
    return overrides


def lay_over(tables: dict[str, Any], key: str, value: Any) -> None:
    """Set `section.field` in nested tables, making the tables on the way."""
    *parents, last = key.split(".")
    for parent in parents:
        tables = tables.setdefault(parent, {})
        if not isinstance(tables, dict):
            raise ConfigError(
                f"{key} = {value!r}: {parent!r} has no fields of its own; name a field that exists"
            )
    tables[last] = value


def _base_path(base: Any, path: Path) -> Path:
    """The file that `base` in the file `path` names."""
    if base in preset_names():
        return preset_path(base)
    below = path.parent / str(base)
    if below.suffix != ".toml" or not below.is_file():
        raise ConfigError(f"base = {base!r}: named in {str(path)!r}, but not there; {_choices()}")
    return below


def _choices() -> str:
    return f"choose one of {', '.join(preset_names())}, or give the path of a .toml file"
