"""The shares of a preparation's tasks: files dealt to them, and the units of all."""

import ast
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.config import RunConfig
from slm2_minimal.prepare import cluster as module
from slm2_minimal.prepare.cluster import all_units, deal
from slm2_minimal.prepare.handover import write_record
from slm2_minimal.prepare.units import Unit
from slm2_minimal.prepare.work import Job


def test_files_are_dealt_in_runs() -> None:
    files = [
        ("web", "a", 10),
        ("web", "b", 10),
        ("web", "c", 20),
        ("hub", "owner/name", None),
        ("en", None, None),
    ]
    assert deal(files, 1) == [[("web", ["a", "b", "c"]), ("hub", ["owner/name"]), ("en", [None])]]
    # 40 bytes on two tasks: what has no size counts as 20, so that each has 40 of 80.
    assert deal(files, 2) == [[("web", ["a", "b", "c"])], [("hub", ["owner/name"]), ("en", [None])]]
    assert deal([("web", "a", 0)], 2) == [[("web", ["a"])], []]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9) | st.none()), min_size=1),
    st.integers(1, 7),
)
def test_no_file_is_lost_and_no_task_has_much_more_than_its_share(
    rows: list[tuple[str, int | None]], tasks: int
) -> None:
    files = [(source, str(number), size) for number, (source, size) in enumerate(rows)]
    dealt = deal(files, tasks)
    assert len(dealt) == tasks
    assert [(source, path) for own in dealt for source, paths in own for path in paths] == [
        (source, path) for source, path, _ in files
    ]
    known = sum(size or 0 for _, _, size in files)
    sizes = {path: max(known // tasks, 1) if size is None else size for _, path, size in files}
    for own in dealt:
        assert sum(sizes[str(path)] for _, paths in own for path in paths) <= sum(
            sizes.values()
        ) / tasks + max(sizes.values())


def test_counts_run_through_all_parts_of_a_source(tmp_path: Path) -> None:
    """Two tasks share the source `web`; the second goes on with another."""
    run = RunConfig.load("tiny", {"data.prepared": str(tmp_path)})
    job = Job(run.data, run.prepare)
    tasks = [
        [
            Unit("web-000000-000000", "web", 4, 40, 5, {"empty": 1}, last=False),
            Unit("web-000000-000001", "web", 2, 20, 8, {"empty": 2}, last=True),
        ],
        [
            Unit("web-000001-000000", "web", 3, 30, 3, {"too short": 1}, last=False),
            Unit("web-000001-000001", "web", 1, 10, 6, {"too short": 1, "empty": 1}, last=True),
            Unit("en-000001-000000", "en", 7, 70, 7, {}, last=True),
        ],
        [],
    ]
    write_record(job.work / "tasks.json", [[] for _ in tasks])
    for rank, units in enumerate(tasks):
        write_record(job.work / "units" / f"{rank:06d}.json", units)
    units = all_units(job)
    assert [unit.name for unit in units] == [unit.name for own in tasks for unit in own]
    assert [(unit.read, unit.skipped) for unit in units] == [
        (5, {"empty": 1}),
        (8, {"empty": 2}),
        (11, {"empty": 2, "too short": 1}),
        (14, {"empty": 3, "too short": 1}),
        (7, {}),
    ]
    assert sum(unit.documents for unit in units) == 17


def test_only_the_public_names_of_datatrove_are_used() -> None:
    """No private method of it, no global of it that is replaced, and no subclass."""
    tree = ast.parse(Path(module.__file__).read_text())
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert [
        node.attr for node in attributes if node.attr.startswith("_") and node.attr[1] != "_"
    ] == []
