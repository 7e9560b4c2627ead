"""Where a configuration comes from: presets, and TOML files on top of one another."""

import tomllib
from pathlib import Path
from typing import Any

from slm2_minimal.config.errors import ConfigError, shown
from slm2_minimal.config.paths import expand

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
        # utf-8-sig: with or without the byte-order mark that some editors write
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"{place}: {error.strerror}; give a readable TOML file or a preset name"
        ) from None
    except RecursionError:
        raise ConfigError(f"{place}: nested too deep; no key has more than three levels") from None
    except ValueError as error:
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


def _base_path(base: Any, path: Path) -> Path:
    """The file that `base` in the file `path` names."""
    if base in preset_names():
        return preset_path(base)
    if str(base).endswith(".toml"):
        below = path.parent / expand(str(base), "base")
        if below.is_file():
            return below
    where = f"base = {shown(base)}: named in {str(path)!r}, but not there"
    raise ConfigError(f"{where}; {_choices()}")


def _choices() -> str:
    return f"choose one of {', '.join(preset_names())}, or give the path of a .toml file"
