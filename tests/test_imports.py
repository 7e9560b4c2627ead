"""The shape of the package: rooms import downwards only, no two modules import each
other, no file outgrows a reading.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import slm2_minimal

PACKAGE = Path(slm2_minimal.__file__).parent
NAME = PACKAGE.name
MAX_LINES = 400

# Which floor each room stands on: a room imports itself and what is on lower floors,
# without exception. `top` is the package's own __init__, which hands out names of all;
# nothing may import it.
FLOORS = (
    {"files", "config"},
    {"text", "model", "report", "terminal"},
    {"data", "distributed", "inference"},
    {"prepare", "evaluate", "export"},
    {"train"},
    {"align", "evaluating", "evaluating_retrieval", "launch", "quantising", "writing"},
    {"cli", "teach"},
    {"__main__", "top"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path, root: Path = PACKAGE) -> str:
    return ".".join((NAME, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "top"


def imports(source: str, known: Mapping[str, object]) -> Iterator[str]:
    """Our own modules that a source imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module or "" for name in submodules]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == NAME)


def wrong_arrows(graph: Mapping[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if room(target) != room(module) and FLOOR[room(target)] >= FLOOR[room(module)]
    ]


GRAPH = {
    module: set(imports(path.read_text(encoding="utf-8"), MODULES)) - {module}
    for module, path in MODULES.items()
}


def test_imports_point_down_only() -> None:
    assert wrong_arrows(GRAPH) == []


def test_no_circles() -> None:
    """Counts imports inside functions too: a circle that is only put off is still a
    circle.
    """
    list(TopologicalSorter(GRAPH).static_order())


def test_the_reader_sees_the_arrows_that_are_there() -> None:
    assert f"{NAME}.config" in GRAPH[f"{NAME}.model.block"]
    assert f"{NAME}.train.trainer" in GRAPH[f"{NAME}.cli"], "an import inside a function"
    assert f"{NAME}.model.hub" in GRAPH[f"{NAME}.model.transformer"], (
        "a module imported by name from its room"
    )


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("text.corpus", "data.packing"),
        ("model.loss", "data.packing"),
        ("data.loader", "prepare.units"),
        ("distributed.world", "train.step"),
        ("train.trainer", "launch.check"),
        ("evaluate.validation", "train.trainer"),
        ("files", "config"),
        ("config", "text.tokenizer"),
        ("model.block", "text.tokenizer"),
        ("inference.generate", "train.trainer"),
        ("train.trainer", "cli"),
        ("train.trainer", "teach.explore"),
        ("text.tokenizer", ""),
        ("cli", ""),
    ],
)
def test_an_arrow_that_points_up_is_found(module: str, target: str) -> None:
    assert wrong_arrows({f"{NAME}.{module}": {f"{NAME}.{target}".removesuffix(".")}})


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES.keys())
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
