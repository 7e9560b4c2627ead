"""What the tasks of `cluster` do: the steps of `prepare` as steps of datatrove
pipelines, and the pipelines made of them.

A task has one run of the files, and its documents are numbered from 0. Reading, keys,
decontamination and tokens are ours, and so is the choice of who stays of a cluster
(datatrove keeps whichever document its union-find ends at); bringing equal keys
together and dropping the listed documents are datatrove's own steps.
"""

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupFilter
from datatrove.utils.hashing import HashConfig
from jaxtyping import Int64

from slm2_minimal.data.shards import MANIFEST
from slm2_minimal.files import read_json, whole_file, write_json
from slm2_minimal.prepare.duplicates import (
    BANDS,
    BYTES,
    EXAMPLE_MEMBERS,
    EXAMPLES,
    ID,
    TEXT,
    TEXT_REST,
    DedupReport,
    link,
    write_keys,
)
from slm2_minimal.prepare.minhash import NOBODY
from slm2_minimal.prepare.publish import publish
from slm2_minimal.prepare.units import Part, Unit, ingest, read_unit
from slm2_minimal.prepare.work import Job, benchmark_index, write_unit
from slm2_minimal.text.documents import Document

Records = Iterator[Any]
TASKS, CLUSTERS = "tasks.json", "clusters.json"
TEXTS, IDS, FIRST_BAND = range(
    3
)  # buckets: exact copies, repeated ids (counted, never linked), and one for each band
KEY_END = (1 << 61) - 1  # datatrove reads no key from here on
RECORD = np.dtype(
    [("lead", "<u8"), ("rest", "<u8"), ("document", "<u4")]
)  # datatrove's signature of two 64-bit hashes


@dataclass(frozen=True)
class Stage:
    """One pipeline: its tasks may run at the same time, all of them after those of the
    stage before.
    """

    name: str
    steps: list[Any]
    tasks: int


def pipelines(job: Job, tasks: int) -> list[Stage]:
    """The stages of a preparation, in order; `tasks` share the files.

    Without duplicates to look for, there are no keys and no buckets. The tasks of the
    second stage are a multiple of the buckets.
    """
    keys, pairs, removed = (
        str(job.work(name).resolve()) for name in ("signatures", "pairs", "removed")
    )
    buckets = FIRST_BAND + (job.lsh.bands if job.lsh else 0)
    config = MinhashConfig(
        num_buckets=buckets,
        hashes_per_bucket=2,
        hash_config=HashConfig(precision=64, hash_fc="sha1"),
    )
    compared = job.config.duplicates != "keep"
    index = [IndexBenchmarks(job)] if job.config.benchmarks else []
    stages = [
        Stage("read", [ReadAndFilter(job), *([WriteSignatures(job)] if compared else [])], tasks)
    ]
    if compared:
        finder = FindPairs(keys, pairs, config=config, lines_to_buffer=1000)
        stages += [
            Stage("pairs", [finder], buckets * max(1, tasks // buckets)),
            Stage("clusters", [ChooseWhoStays(job), *index], 1),
        ]
    elif index:
        stages.append(Stage("benchmarks", index, 1))
    drop = [MinhashDedupFilter(removed)] if compared else []
    return [
        *stages,
        Stage("shards", [ReadAndFilter(job), *drop, DecontaminateAndTokenise(job)], tasks),
        Stage("publish", [Publish(job)], 1),
    ]


class _Step(PipelineStep):  # type: ignore[misc]
    """A step that knows the job; what it reads and writes lies in the job's folder."""

    type = "slm2"

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class ReadAndFilter(_Step):
    """Gives the documents of a task. The first time it reads the sources, filters, and
    writes units; after that it reads the units.
    """

    name = "read and filter"

    def run(self, data: Records | None = None, rank: int = 0, world_size: int = 1) -> Records:
        folder = self.job.work("text")
        for unit in self._units(rank):
            for document in read_unit(folder, unit):
                about = {"source": unit.source, "unit": unit.name} | {
                    name: getattr(document, name) for name in ("language", "domain", "title")
                }
                yield Record(text=document.text, id=document.id, metadata=about)

    def _units(self, rank: int) -> Iterator[Unit]:
        path, units = _units_path(self.job, rank), list[Unit]()
        if path.exists():
            yield from _units_of(self.job, rank)
            return
        for source, paths in dealt_files(self.job)[rank]:
            part = Part(rank, paths)
            for unit in ingest(
                self.job.work("text"), source, self.job.data.sources[source], self.job.config, part
            ):
                units.append(unit)
                yield unit
        write_json(path, [asdict(unit) for unit in units])


class WriteSignatures(_Step):
    """Writes the keys of a task's documents (`dedup.write_keys`), and from them a
    sorted file for each bucket, as datatrove reads it.

    A key takes the place of a band's hashes: datatrove compares a pair of 64-bit
    numbers, the first of which must lie below KEY_END.
    """

    name = "our signatures"

    def run(self, data: Records, rank: int = 0, world_size: int = 1) -> None:
        path, ids = self.job.work("keys") / f"{rank:06d}.npy", list[str]()

        def texts() -> Iterator[str]:
            for record in data:
                ids.append(f"{record.metadata['source']} {record.metadata['language']} {record.id}")
                yield record.text

        write_keys(
            path, ids, texts(), self.job.lsh
        )  # takes the ids when the texts have come to their end
        keys = np.load(path, mmap_mode="r", allow_pickle=False)
        pairs = [(TEXT, TEXT_REST), (ID, ID), *((band, band) for band in range(BANDS, len(keys)))]
        for bucket, (lead, rest) in enumerate(pairs):
            records = np.empty(keys.shape[1], dtype=RECORD)
            records["lead"] = np.minimum(keys[lead] >> np.uint64(3), np.uint64(KEY_END - 1))
            records["rest"], records["document"] = keys[rest], np.arange(keys.shape[1])
            records = records[keys[lead] != NOBODY]
            with whole_file(
                self.job.work(f"signatures/bucket_{bucket:03d}") / f"{rank:05d}.minhash.sig"
            ) as file:
                file.write(records[np.lexsort((records["rest"], records["lead"]))].tobytes())


class FindPairs(MinhashDedupBuckets):  # type: ignore[misc]
    """datatrove's step, with the keys of a bucket shared evenly among its tasks: ours
    are spread evenly, in whatever file they stand.

    (datatrove takes the borders from the first file, which must then have more
    documents than a bucket has tasks.)
    """

    def get_worker_hash_range(
        self, sig_files: list[str], rank: int, world_size: int
    ) -> tuple[int, int]:
        """First and end of the keys that a task compares."""
        share = world_size // self.config.num_buckets
        place = rank % share
        return KEY_END * place // share, KEY_END * (place + 1) // share


class ChooseWhoStays(_Step):
    """Joins pairs to clusters, lists for every task the documents that go, and writes
    the report on duplicates. One task.

    Of every cluster stays the first document, or the longest one, as in
    `dedup.find_duplicates`. Held are the documents that have a duplicate, some 50 bytes
    each, and the pairs of one file.
    """

    name = "choose who stays"

    def run(self, data: Records | None = None, rank: int = 0, world_size: int = 1) -> None:
        paths = sorted(self.job.work("pairs").glob("*.dups"))
        linking = [path for path in paths if _bucket(path) != IDS]
        documents = np.empty(
            0, dtype=np.int64
        )  # those in clusters, each as task * 2**32 + its place there: in order
        for path in linking:
            documents = np.union1d(documents, _pairs(path))
        label = np.arange(len(documents))
        for path in linking:
            link(label, *np.searchsorted(documents, _pairs(path)).T)
        clusters = documents[
            np.lexsort((self._ranks(documents), label))
        ]  # one after another, the one that stays first
        sizes = np.unique(label, return_counts=True)[1]
        heads = np.cumsum(sizes) - sizes
        removed = np.sort(np.delete(clusters, heads))
        for task, own in _by_task(removed):
            with whole_file(self.job.work("removed") / f"{task:06d}.remove") as file:
                file.write(own.astype("<u4").tobytes())  # of 64 bits the lower half: the place
        copies, repeated = (
            sum(len(_pairs(path)) for path in paths if _bucket(path) == bucket)
            for bucket in (TEXTS, IDS)
        )
        largest = np.argsort(-sizes, kind="stable")[:EXAMPLES]
        examples = [
            clusters[heads[i] : heads[i] + min(sizes[i], EXAMPLE_MEMBERS)].tolist() for i in largest
        ]
        self._write_report(
            removed, dict(sorted(Counter(sizes.tolist()).items())), copies, repeated, examples
        )

    def _ranks(self, documents: Int64[np.ndarray, " m"]) -> np.ndarray:
        """A number for each document, smallest for the one of a cluster that is to
        stay; of equal ones the first stays.
        """
        if self.job.config.keep == "first":
            return np.zeros(len(documents))
        ranks = [np.empty(0, dtype=np.uint64)]
        for task, own in _by_task(documents):
            lengths = np.load(
                self.job.work("keys") / f"{task:06d}.npy", mmap_mode="r", allow_pickle=False
            )[BYTES]
            ranks.append(~lengths[own & 0xFFFFFFFF])
        return np.concatenate(ranks)

    def _write_report(
        self,
        removed: Int64[np.ndarray, " r"],
        sizes: dict[int, int],
        copies: int,
        repeated: int,
        examples: list[list[int]],
    ) -> None:
        units, starts = _all_units(self.job), _starts(self.job)
        gone = np.bincount(
            np.searchsorted(starts, removed, side="right") - 1, minlength=len(units)
        ).tolist()
        held, lost = Counter[str](), Counter[str]()
        for unit, count in zip(units, gone, strict=True):
            held[unit.source] += unit.documents
            lost[unit.source] += count
        shares = {source: lost[source] / max(held[source], 1) for source in held}
        report = asdict(
            DedupReport(held.total(), copies, len(removed) - copies, sizes, [], shares, repeated)
        )
        report["examples"] = [
            [self._named(units, starts, document) for document in cluster] for cluster in examples
        ]
        write_json(self.job.work() / CLUSTERS, report)

    def _named(self, units: list[Unit], starts: Sequence[int], document: int) -> dict[str, str]:
        """A document of the report by its id and first words."""
        number = bisect_right(starts, document) - 1
        row = document - starts[number]
        [found] = itertools.islice(read_unit(self.job.work("text"), units[number]), row, row + 1)
        return {"source": units[number].source, "id": found.id, "text": found.text[:80]}


class IndexBenchmarks(_Step):
    """Builds the index of the evaluation sets, once, for the tasks of the next
    stage.
    """

    name = "index the benchmarks"

    def run(self, data: Records | None = None, rank: int = 0, world_size: int = 1) -> None:
        benchmark_index(self.job)


class DecontaminateAndTokenise(_Step):
    """Writes the shard of every unit of a task from the documents that are left
    (`stages.write_unit`), those without documents too.
    """

    name = "decontaminate and tokenise"

    def run(self, data: Records, rank: int = 0, world_size: int = 1) -> None:
        groups = itertools.groupby(data, key=lambda record: record.metadata["unit"])
        name, records = next(groups, ("", iter(())))
        for unit in _units_of(self.job, rank):
            if unit.name == name:
                write_unit(self.job, unit, map(_document, records))
                name, records = next(groups, ("", iter(())))
            else:
                write_unit(self.job, unit, ())


class Publish(_Step):
    """Joins what the tasks left, and writes report and manifest (`prepare.publish`).
    One task.
    """

    name = "publish"

    def run(self, data: Records | None = None, rank: int = 0, world_size: int = 1) -> None:
        if (
            self.job.folder / MANIFEST
        ).exists():  # stopped after its work and before datatrove's marker
            return
        units, duplicates = _all_units(self.job), None
        done = [read_json(self.job.work("tokenised") / f"{unit.name}.json") for unit in units]
        if self.job.config.duplicates != "keep":
            duplicates = read_json(self.job.work() / CLUSTERS)
        publish(self.job, units, done, duplicates)


def _document(record: Any) -> Document:
    about = record.metadata
    return Document(record.id, about["language"], about["domain"], about["title"], record.text)


def dealt_files(job: Job) -> list[list[tuple[str, list[str | None]]]]:
    """For every task the sources that it reads, and which of their files."""
    return read_json(job.work() / TASKS)


def _units_path(job: Job, rank: int) -> Path:
    return job.work("units") / f"{rank:06d}.json"


def _units_of(job: Job, rank: int) -> list[Unit]:
    return [Unit(**fields) for fields in read_json(_units_path(job, rank))]


def _all_units(job: Job) -> list[Unit]:
    """The units of all tasks in order, their counts running through all parts of a
    source, as if one task had read it.
    """
    units, before = list[Unit](), dict[str, Unit]()
    for rank in range(len(dealt_files(job))):
        own = _units_of(job, rank)
        for unit in own:
            first = before.get(unit.source, replace(unit, read=0, skipped={}))
            units.append(
                replace(
                    unit,
                    read=first.read + unit.read,
                    skipped=dict(Counter(first.skipped) + Counter(unit.skipped)),
                )
            )
        before |= {unit.source: unit for unit in units[len(units) - len(own) :]}
    return units


def _starts(job: Job) -> list[int]:
    """The first document of each unit, as task * 2**32 + its place there."""
    starts = list[int]()
    for rank in range(len(dealt_files(job))):
        sizes = [unit.documents for unit in _units_of(job, rank)]
        starts += itertools.accumulate(sizes[:-1], initial=rank << 32) if sizes else []
    return starts


def _by_task(documents: Int64[np.ndarray, " m"]) -> Iterator[tuple[int, Int64[np.ndarray, " own"]]]:
    """Documents in order, as task * 2**32 + their places, task by task."""
    tasks, first = np.unique(documents >> 32, return_index=True)
    yield from zip(
        tasks.tolist(), np.split(documents, first[1:]), strict=False
    )  # of no documents, one empty part and no task


def _bucket(path: Path) -> int:
    return int(path.name.partition("_")[0])


def _pairs(path: Path) -> Int64[np.ndarray, "pairs 2"]:
    """The pairs of documents in a file of datatrove's, each as task * 2**32 + its place
    there.
    """
    numbers = np.fromfile(path, dtype="<u4").astype(np.int64).reshape(-1, 2, 2)
    return numbers[..., 0] << 32 | numbers[..., 1]
