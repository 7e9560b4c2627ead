"""Where a configuration comes from: presets, TOML files, and overrides from the command
line. And files that are whole or absent.
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
    path = PRESET_DIR / f"{name}.toml"
    if name not in preset_names():
        raise ConfigError(
            f"preset = {name!r}: unknown; choose one of {', '.join(preset_names())}, or give the"
            " path of a .toml file"
        )
    return path


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file; what cannot be read or parsed is a ConfigError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"config = {str(path)!r}: {error.strerror}; give a readable TOML file or a preset name"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config = {str(path)!r}: not valid TOML ({error}); mend that place"
        ) from None


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """`["--train.steps", "10", "--model.use_qkv_bias=false"]` as `{"train.steps": 10,
    "model.use_qkv_bias": False}`.

    Values are TOML values; what does not parse as one is taken as a string.
    """
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("--") or "." not in key:
            raise ConfigError(
                f"argument = {key!r}: unknown; overrides look like --section.field value, and"
                " --help shows the rest"
            )
        if not equals:
            if not rest:
                raise ConfigError(
                    f"{key.removeprefix('--')}: missing; give it a value, {key} VALUE"
                )
            value = rest.pop(0)
        try:
            overrides[key.removeprefix("--")] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key.removeprefix("--")] = value
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
