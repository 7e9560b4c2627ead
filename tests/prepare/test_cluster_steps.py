"""The single steps of a preparation on datatrove: files dealt to tasks, keys to parts,
pairs to clusters.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm2_minimal.config import RunConfig
from slm2_minimal.prepare import cluster_steps as steps
from slm2_minimal.prepare.cluster import deal
from slm2_minimal.prepare.units import Unit
from slm2_minimal.prepare.work import Job

# Parts


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


def job_of(folder: Path, tasks: int, **changes: Any) -> Job:
    """A job whose tasks have one unit each, of a hundred documents."""
    run = RunConfig.load(
        "tiny", {"data.prepared": str(folder), "prepare.duplicates": "exact"} | changes
    )
    job = Job(run.data, run.prepare)
    (job.work() / steps.TASKS).write_text(json.dumps([[["en", [None]]]] * tasks))
    for rank in range(tasks):
        unit = Unit(f"en-{rank:06d}-000000", "en", 100, 0, 100, {}, last=True)
        (job.work("units") / f"{rank:06d}.json").write_text(json.dumps([vars(unit)]))
    return job


def listed(job: Job, rank: int) -> list[int]:
    path = job.work("removed") / f"{rank:06d}.remove"
    return np.fromfile(path, "<u4").tolist() if path.exists() else []


@pytest.mark.parametrize(
    "pairs",
    [[("B", "C"), ("A", "B")], [("A", "B"), ("B", "C")], [("C", "D"), ("A", "B"), ("B", "C")]],
)
def test_the_first_of_a_cluster_stays_whatever_the_order_of_its_pairs(
    tmp_path: Path, pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps.ChooseWhoStays, "_write_report", lambda self, *numbers: None)
    job, places = job_of(tmp_path, 3), {"A": (0, 7), "B": (0, 9), "C": (1, 3), "D": (2, 8)}
    found = np.asarray([(*places[a], *places[b]) for a, b in pairs], dtype="<u4")
    (job.work("pairs") / "00000_00.dups").write_bytes(found.tobytes())
    (job.work("pairs") / "00001_00.dups").write_bytes(
        np.asarray([0, 0, 0, 1], dtype="<u4").tobytes()
    )  # the same id, and no more
    steps.ChooseWhoStays(job).run()
    assert [listed(job, rank) for rank in range(3)] == [[9], [3], [8] if len(pairs) == 3 else []]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.integers(0, 2), st.integers(0, 5)] * 2), max_size=12))
def test_clusters_are_the_components_of_the_pairs(
    tmp_path: Path, pairs: list[tuple[int, int, int, int]]
) -> None:
    job = job_of(tmp_path, 3)
    for path in job.work("removed").iterdir():
        path.unlink()
    pairs = [pair for pair in pairs if pair[:2] != pair[2:]]
    for file in range(2):  # of one bucket
        (job.work("pairs") / f"00000_{file:02d}.dups").write_bytes(
            np.asarray(pairs[file::2], dtype="<u4").tobytes()
        )
    found = MonkeyReport()
    step = steps.ChooseWhoStays(job)
    step._write_report = found  # type: ignore[method-assign]
    step.run()
    first = {(rank, place): (rank, place) for rank in range(3) for place in range(100)}
    for _ in pairs:
        for a, b in ((pair[:2], pair[2:]) for pair in pairs):
            first[a] = first[b] = min(first[a], first[b])
    expected = [document for document, stays in first.items() if stays != document]
    assert [(rank, place) for rank in range(3) for place in listed(job, rank)] == expected
    members = [stays for document, stays in first.items() if list(first.values()).count(stays) > 1]
    assert sum(size * count for size, count in found.sizes.items()) == len(members)


class MonkeyReport:
    """Takes the place of the report, and keeps the sizes of the clusters."""

    def __call__(self, removed: Any, sizes: dict[int, int], *rest: Any) -> None:
        self.sizes = sizes


@pytest.mark.parametrize("share", [1, 2, 5])
def test_every_key_meets_its_like_and_no_other(
    tmp_path: Path, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through our signatures and datatrove's search: the largest keys too, the
    smallest, and those that differ in their last bits.
    """
    top, few = 2**64 - 1, [5, 2**63, 2**63 + 1, 2**61, 2**64 - 9]
    columns = [[top, top - 1, 0, 1, *few], [top, 2, 0, *few], [], [few[2], top, *few]]
    job = job_of(tmp_path, len(columns))

    def write_keys(path: Path, ids: Any, texts: Any, lsh: Any) -> None:
        keys = np.asarray(columns[int(path.stem)], dtype=np.uint64)
        np.save(path, np.stack([keys, keys, keys, keys]))

    monkeypatch.setattr(steps, "write_keys", write_keys)
    for rank in range(len(columns)):
        steps.WriteSignatures(job).run(iter(()), rank)
    settings = MinhashConfig(
        num_buckets=2, hashes_per_bucket=2, hash_config=HashConfig(precision=64, hash_fc="sha1")
    )
    for rank in range(2 * share):
        steps.FindPairs(str(job.work("signatures")), str(job.work("pairs")), config=settings).run(
            None, rank, 2 * share
        )
    where: dict[int, list[tuple[int, int]]] = {}
    for rank, keys in enumerate(columns):
        for place, key in enumerate(keys):
            where.setdefault(key, []).append((rank, place))
    expected = sorted(
        (*a, *b) for key, found in where.items() if key for a, b in itertools.pairwise(found)
    )
    for bucket in range(2):
        files = sorted(job.work("pairs").glob(f"{bucket:05d}_*.dups"))
        assert len(files) == share
        assert (
            sorted(
                tuple(row)
                for file in files
                for row in np.fromfile(file, "<u4").reshape(-1, 4).tolist()
            )
            == expected
        )
