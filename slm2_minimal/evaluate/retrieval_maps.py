"""What was found again, as maps: where the number stood by how long the text was."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from slm2_minimal.evaluate.retrieval import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = " ░▒▓█"  # from nothing found to all
INCHES = 2.2  # of one map


def share(cells: Sequence[Cell]) -> float:
    """Of all answers of these cells, how many are exact."""
    return fmean(each for cell in cells for each in cell.exact)


def text_maps(cells: Sequence[Cell]) -> Iterator[str]:
    """For a terminal: of each kind depth by length, over all languages, and then
    language by kind.
    """
    for kind in _names(cells, "kind"):
        own = [cell for cell in cells if cell.kind == kind]
        yield from _table(kind, own, "depth", "length")
    yield from _table("language", cells, "language", "kind")


def draw_maps(cells: Sequence[Cell]) -> "Figure":
    """A map of each kind (rows) and language (columns)."""
    from matplotlib.figure import Figure

    kinds, languages = _names(cells, "kind"), _names(cells, "language")
    size = (1 + INCHES * len(languages), 1 + INCHES * len(kinds))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(kinds), len(languages), squeeze=False)
    for row, kind in zip(axes, kinds, strict=True):
        for ax, language in zip(row, languages, strict=True):
            own = [cell for cell in cells if (cell.kind, cell.language) == (kind, language)]
            picture = draw_map(ax, own)
            ax.set_title(f"{kind}, {language}", fontsize=9)
    figure.colorbar(picture, ax=axes, label="share found")
    return figure


def draw_map(ax: Any, cells: Sequence[Cell]) -> Any:
    """Depth by length on a matplotlib axis: white for nothing found, dark for all.
    Returns the picture, for a colour bar.
    """
    depths, lengths = _names(cells, "depth"), _names(cells, "length")
    rows = [[share(_at(cells, depth=d, length=n)) for n in lengths] for d in depths]
    picture = ax.imshow(rows, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    ax.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    ax.set(xlabel="tokens", ylabel="depth")
    ax.grid(False)
    return picture


def _table(corner: str, cells: Sequence[Cell], row: str, column: str) -> Iterator[str]:
    columns = _names(cells, column)
    yield f"{corner:<10}" + "".join(f"{name:>12}" for name in columns)
    for name in _names(cells, row):
        line = f"{name:<10}"
        for other in columns:
            found = share(_at(cells, **{row: name, column: other}))
            line += f"{found:>10.0%} {SHADES[round(found * (len(SHADES) - 1))]}"
        yield line


def _names(cells: Sequence[Cell], field: str) -> list[Any]:
    """The values of a field, each once, in their order."""
    return list(dict.fromkeys(getattr(cell, field) for cell in cells))


def _at(cells: Sequence[Cell], **fields: Any) -> list[Cell]:
    return [cell for cell in cells if all(getattr(cell, k) == v for k, v in fields.items())]
