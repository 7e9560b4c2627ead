"""`slm2 prepare --executor local|slurm`: the stages of `prepare` as datatrove pipelines, on one machine or on many (extra `cluster`).

The files of all sources, in their order, are dealt to the tasks in runs of about equal size. So the order of tasks, and within a task of
documents, is the order of `prepare`, and the same document of every cluster stays. Reading, keys, decontamination and tokens are ours, and so
is the choice of who stays (datatrove keeps whichever document its union-find ends at); bringing equal keys together and dropping the listed
documents are datatrove's. What comes out is `prepare`'s, document for document; only the borders between shards lie elsewhere.
"""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from slm2_minimal.config import ConfigError, DataError, MissingExtraError, RunConfig, whole_file
from slm2_minimal.data.dedup import BANDS, BYTES, EXAMPLE_MEMBERS, EXAMPLES, ID, TEXT, TEXT_REST, DedupReport, link, write_keys
from slm2_minimal.data.minhash import NOBODY
from slm2_minimal.data.prepare import REPORT, Say, claim, publish, summary
from slm2_minimal.data.shards import MANIFEST, write_json
from slm2_minimal.data.stages import WORK, Job, benchmark_index, write_unit
from slm2_minimal.data.units import Part, Unit, ingest, read_unit
from slm2_minimal.text.corpus import Document, text_files

try:
    from datatrove.data import Document as Record
    from datatrove.executor import slurm
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupFilter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.logging import logger, setup_default_logger
except ImportError:
    raise MissingExtraError("datatrove", "cluster", "prepare with --executor local or slurm") from None

Records = Iterator[Any]
TASKS, LOGS = "tasks.json", "logs"
MAX_ARRAY = 1000  # elements of one SLURM job array: its own default limit is 1001
TEXTS, IDS, FIRST_BAND = range(3)  # buckets: exact copies, repeated ids (counted, never linked), and one for each band
KEY_END = (1 << 61) - 1  # datatrove reads no key from here on
RECORD = np.dtype([("lead", "<u8"), ("rest", "<u8"), ("document", "<u4")])  # datatrove's signature of two 64-bit hashes


@dataclass(frozen=True)
class Stage:
    """One pipeline: its tasks may run at the same time, all of them after those of the stage before."""

    name: str
    steps: list[Any]
    tasks: int


def pipelines(job: Job, tasks: int) -> list[Stage]:
    """The stages of a preparation, in order; `tasks` share the files.

    Without duplicates to look for, there are no keys and no buckets. The tasks of the second stage are a multiple of the buckets.
    """
    keys, pairs, removed = (job.work(name) for name in ("signatures", "pairs", "removed"))
    buckets = FIRST_BAND + (job.lsh.bands if job.lsh else 0)
    config = MinhashConfig(num_buckets=buckets, hashes_per_bucket=2, hash_config=HashConfig(precision=64, hash_fc="sha1"))
    compared = job.config.duplicates != "keep"
    index = [IndexBenchmarks(job)] if job.config.benchmarks else []
    stages = [Stage("read", [ReadAndFilter(job), *([WriteSignatures(job)] if compared else [])], tasks)]
    if compared:
        finder = FindPairs(str(keys), str(pairs), config=config, lines_to_buffer=1000)
        stages += [Stage("pairs", [finder], buckets * max(1, tasks // buckets)), Stage("clusters", [ChooseWhoStays(job), *index], 1)]
    elif index:
        stages.append(Stage("benchmarks", index, 1))
    drop = [MinhashDedupFilter(str(removed))] if compared else []
    return [
        *stages,
        Stage("shards", [ReadAndFilter(job), *drop, DecontaminateAndTokenise(job)], tasks),
        Stage("publish", [Publish(job)], 1),
    ]


# Steps


class _Step(PipelineStep):  # type: ignore[misc]
    """A step that knows the job; what it reads and writes lies in the job's folder."""

    type = "slm2"

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class ReadAndFilter(_Step):
    """Gives the documents of a task. The first time it reads the sources, filters, and writes units; after that it reads the units."""

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
        for source, paths in _tasks(self.job)[rank]:
            part = Part(rank, paths)
            for unit in ingest(self.job.work("text"), source, self.job.data.sources[source], self.job.config, part):
                units.append(unit)
                yield unit
        write_json(path, [asdict(unit) for unit in units])


class WriteSignatures(_Step):
    """Writes the keys of a task's documents (`dedup.write_keys`), and from them a sorted file for each bucket, as datatrove reads it.

    A key takes the place of a band's hashes: datatrove compares a pair of 64-bit numbers, the first of which must lie below KEY_END.
    """

    name = "our signatures"

    def run(self, data: Records, rank: int = 0, world_size: int = 1) -> None:
        path, ids = self.job.work("keys") / f"{rank:06d}.npy", list[str]()

        def texts() -> Iterator[str]:
            for record in data:
                ids.append(f"{record.metadata['source']} {record.metadata['language']} {record.id}")
                yield record.text

        write_keys(path, ids, texts(), self.job.lsh)  # takes the ids when the texts have come to their end
        keys = np.load(path, mmap_mode="r", allow_pickle=False)
        pairs = [(TEXT, TEXT_REST), (ID, ID), *((band, band) for band in range(BANDS, len(keys)))]
        for bucket, (lead, rest) in enumerate(pairs):
            records = np.empty(keys.shape[1], dtype=RECORD)
            records["lead"] = np.minimum(keys[lead] >> np.uint64(3), np.uint64(KEY_END - 1))
            records["rest"], records["document"] = keys[rest], np.arange(keys.shape[1])
            records = records[keys[lead] != NOBODY]
            with whole_file(self.job.work(f"signatures/bucket_{bucket:03d}") / f"{rank:05d}.minhash.sig") as file:
                file.write(records[np.lexsort((records["rest"], records["lead"]))].tobytes())


class FindPairs(MinhashDedupBuckets):  # type: ignore[misc]
    """datatrove's step, with the keys of a bucket shared evenly among its tasks: ours are spread evenly, in whatever file they stand.

    (datatrove takes the borders from the first file, which must then have more documents than a bucket has tasks.)
    """

    def get_worker_hash_range(self, sig_files: list[str], rank: int, world_size: int) -> tuple[int, int]:
        """First and end of the keys that a task compares."""
        share = world_size // self.config.num_buckets
        place = rank % share
        return KEY_END * place // share, KEY_END * (place + 1) // share


class ChooseWhoStays(_Step):
    """Joins pairs to clusters, lists for every task the documents that go, and writes the report on duplicates. One task.

    Of every cluster stays the first document, or the longest one, as in `dedup.find_duplicates`. Held are the documents that have a
    duplicate, 16 bytes each, and the pairs of one file.
    """

    name = "choose who stays"

    def run(self, data: Records | None = None, rank: int = 0, world_size: int = 1) -> None:
        units, paths = _all_units(self.job), sorted(self.job.work("pairs").glob("*.dups"))
        linking = [path for path in paths if _bucket(path) != IDS]
        documents = np.empty(0, dtype=np.int64)  # those in clusters, each as task * 2**32 + its place there: in order
        for path in linking:
            documents = np.union1d(documents, _pairs(path))
        label = np.arange(len(documents))
        for path in linking:
            link(label, *np.searchsorted(documents, _pairs(path)).T)
        members = documents[np.lexsort((self._ranks(documents), label))]
        sizes = np.unique(label, return_counts=True)[1]
        heads = np.cumsum(sizes) - sizes
        removed = np.sort(np.delete(members, heads))
        for task in np.unique(removed >> 32):
            with whole_file(self.job.work("removed") / f"{task:06d}.remove") as file:
                file.write(removed[removed >> 32 == task].astype("<u4").tobytes())  # the lower half: the place

        starts, of = _starts(units), Counter[str]()
        gone = np.bincount(np.searchsorted(starts, removed, side="right") - 1, minlength=len(units))
        for unit, count in zip(units, gone.tolist(), strict=True):
            of[unit.source] += count
        total = sum(unit.documents for unit in units)
        held = {source: sum(unit.documents for unit in units if unit.source == source) for source in of}
        copies, repeated = (sum(len(_pairs(path)) for path in paths if _bucket(path) == bucket) for bucket in (TEXTS, IDS))
        largest = [members[heads[i] : heads[i] + min(sizes[i], EXAMPLE_MEMBERS)] for i in np.argsort(-sizes, kind="stable")[:EXAMPLES]]
        shares = {source: count / max(held[source], 1) for source, count in of.items()}
        numbers = dict(sorted(Counter(sizes.tolist()).items()))
        report = asdict(DedupReport(total, copies, len(removed) - copies, numbers, [], shares, repeated))
        report["examples"] = [[self._named(units, starts, int(document)) for document in cluster] for cluster in largest]
        write_json(self.job.work() / "duplicates.json", report)

    def _ranks(self, documents: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Numbers that are smallest for the document of a cluster that is to stay; of equal ones the first stays."""
        ranks = np.zeros(len(documents), dtype=np.uint64)
        if self.job.config.keep == "longest":
            for task in np.unique(documents >> 32):
                own = documents >> 32 == task
                lengths = np.load(self.job.work("keys") / f"{task:06d}.npy", mmap_mode="r", allow_pickle=False)[BYTES]
                ranks[own] = ~lengths[documents[own] & 0xFFFFFFFF]
        return ranks

    def _named(self, units: list[Unit], starts: Sequence[int], document: int) -> dict[str, str]:
        """A document of the report by its id and first words."""
        number = bisect_right(starts, document) - 1
        row = document - starts[number]
        [found] = itertools.islice(read_unit(self.job.work("text"), units[number]), row, row + 1)
        return {"source": units[number].source, "id": found.id, "text": found.text[:80]}


class IndexBenchmarks(_Step):
    """Builds the index of the evaluation sets, once, for the tasks of the next stage."""

    name = "index the benchmarks"

    def run(self, data: Records | None = None, rank: int = 0, world_size: int = 1) -> None:
        benchmark_index(self.job)


class DecontaminateAndTokenise(_Step):
    """Writes the shard of every unit of a task from the documents that are left (`stages.write_unit`), those without documents too."""

    name = "decontaminate and tokenise"

    def run(self, data: Records, rank: int = 0, world_size: int = 1) -> None:
        groups = itertools.groupby(data, key=lambda record: record.metadata["unit"])
        name, records = next(groups, ("", iter(())))  # also lets the first step list the units
        for unit in _units_of(self.job, rank):
            if unit.name == name:
                write_unit(self.job, unit, map(_document, records))
                name, records = next(groups, ("", iter(())))
            else:
                write_unit(self.job, unit, ())


class Publish(_Step):
    """Joins what the tasks left, and writes report and manifest (`prepare.publish`). One task."""

    name = "publish"

    def run(self, data: Records | None = None, rank: int = 0, world_size: int = 1) -> None:
        if (self.job.folder / MANIFEST).exists():  # stopped after its work and before datatrove's marker
            return
        units, duplicates = _all_units(self.job), None
        done = [_read(self.job.work("tokenised") / f"{unit.name}.json") for unit in units]
        if self.job.config.duplicates != "keep":
            duplicates = _read(self.job.work() / "duplicates.json")
        publish(self.job, units, done, duplicates)


def _document(record: Any) -> Document:
    about = record.metadata
    return Document(record.id, about["language"], about["domain"], about["title"], record.text)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _tasks(job: Job) -> list[list[tuple[str, list[str | None]]]]:
    """For every task the sources that it reads, and which of their files."""
    return _read(job.work() / TASKS)


def _units_path(job: Job, rank: int) -> Path:
    return job.work("units") / f"{rank:06d}.json"


def _units_of(job: Job, rank: int) -> list[Unit]:
    return [Unit(**fields) for fields in _read(_units_path(job, rank))]


def _all_units(job: Job) -> list[Unit]:
    """The units of all tasks in order, their counts running through all parts of a source, as if one task had read it."""
    units, before = list[Unit](), dict[str, Unit]()
    for rank in range(len(_tasks(job))):
        own = _units_of(job, rank)
        for unit in own:
            first = before.get(unit.source, replace(unit, read=0, skipped={}))
            units.append(replace(unit, read=first.read + unit.read, skipped=dict(Counter(first.skipped) + Counter(unit.skipped))))
        before |= {unit.source: unit for unit in units[len(units) - len(own) :]}
    return units


def _starts(units: list[Unit]) -> list[int]:
    """The first document of each unit, as task * 2**32 + its place there."""
    starts = list[int]()
    for rank, own in itertools.groupby(units, key=lambda unit: int(unit.name[-13:-7])):
        starts += itertools.accumulate((unit.documents for unit in own), initial=rank << 32)
        starts.pop()
    return starts


def _bucket(path: Path) -> int:
    return int(path.name.partition("_")[0])


def _pairs(path: Path) -> Int64[np.ndarray, "pairs 2"]:
    """The pairs of documents in a file of datatrove's, each as task * 2**32 + its place there."""
    numbers = np.fromfile(path, dtype="<u4").astype(np.int64).reshape(-1, 2, 2)
    return numbers[..., 0] << 32 | numbers[..., 1]


# Executors


def run_local(run: RunConfig, tasks: int | None = None, say: Say = print) -> dict[str, Any]:
    """Prepare on this machine, in `tasks` (one per worker where not given) that `prepare.workers` processes share; return the report.

    Raises:
        ConfigError, DataError: as `prepare`, and another number of tasks than the folder was begun with. What was written stays, datatrove
        has marked the tasks that were complete, and the same call goes on from there.
    """
    workers = run.prepare.workers or os.cpu_count() or 1
    job = _claim(run, tasks, workers)
    if _is_done(job, say):
        return _read(job.folder / REPORT)
    logger.remove()
    try:
        for stage in pipelines(job, len(_tasks(job))):
            started = time.perf_counter()
            executor = _Local(stage.steps, stage.tasks, min(workers, stage.tasks), str(_logs(job, stage)))
            executor.run()
            say(f"{stage.name:<10} | {stage.tasks} tasks | {time.perf_counter() - started:.1f} s")
    finally:
        setup_default_logger()
    report: dict[str, Any] = _read(job.folder / REPORT)
    for line in summary(report):
        say(line)
    return report


def run_slurm(
    run: RunConfig,
    tasks: int | None = None,
    *,
    partition: str | None = None,
    limit: str = "24:00:00",
    options: Mapping[str, str] | None = None,
    dry_run: bool = False,
    say: Say = print,
) -> None:
    """Submit a job array per stage, each after the one before; with `dry_run`, write the scripts, and one that submits them.

    `tasks`: as many as there are files, at most MAX_ARRAY, where not given. `limit` is SLURM's time limit of a task, and `options` are more
    of `sbatch`'s, which go before the ones set here. `prepare.workers`, where it is not 0, is how many tasks may run at a time.

    Raises:
        ConfigError: no `sbatch` here, or a folder that datatrove's scripts cannot name. Else as `run_local`.
    """
    if not dry_run and not shutil.which("sbatch"):
        raise ConfigError(
            "executor = 'slurm': there is no sbatch on this machine; go to a login node, or add --dry-run to write the scripts"
        )
    if run.data.prepared and len(str(Path(run.data.prepared).resolve()).split()) > 1:
        raise ConfigError(f"data.prepared = {run.data.prepared!r}: datatrove's scripts do not quote it; name a folder without blanks")
    job = _claim(run, tasks, None)
    if _is_done(job, say):
        return
    settings: dict[str, Any] = {"chdir": os.getcwd(), "kill-on-invalid-dep": "yes", **(options or {})}
    bin_folder = shlex.quote(str(Path(sys.executable).parent))
    commands = list[str]()
    executors = list[_Slurm]()
    for stage in pipelines(job, len(_tasks(job))):
        executors.append(
            _Slurm(
                stage.steps, stage.tasks, limit, partition, mem_per_cpu_gb=4, workers=job.config.workers or -1, job_name=f"slm2-{stage.name}",
                qos=None, env_command=f'export PATH={bin_folder}:"$PATH"', sbatch_args=settings, max_array_size=MAX_ARRAY,
                tasks_per_job=-(-stage.tasks // MAX_ARRAY), depends=executors[-1] if executors else None,
                logging_dir=str(_logs(job, stage)),
            )
        )  # fmt: skip
        executors[-1].on_paper = commands if dry_run else None
    logger.remove()
    try:
        executors[-1].launch_job()
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"sbatch ended with {error.returncode}, what it said is above; mend that and run the same again") from None
    finally:
        setup_default_logger()
    for executor in executors:
        state = "complete" if executor.job_id == -1 else executor.script if dry_run else f"job {executor.job_id}"
        say(f"{executor.job_name:<15} | {executor.tasks} tasks | {state}")
    if dry_run:
        path = job.folder / LOGS / "submit.sh"
        path.write_text("\n".join(["#!/bin/bash", "# Each stage starts when the one before has ended well.", "set -e", *commands, ""]))
        say(f"nothing was submitted; to do it, in this order: bash {path.resolve()}")


class _Local(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's executor, its lines in the log files only."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.remove()
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            try:
                return super()._run_for_rank(rank, local_rank, node_rank)
            finally:
                logger.remove()  # the one that datatrove put back


class _Slurm(slurm.SlurmPipelineExecutor):  # type: ignore[misc]
    """datatrove's executor without its job of merged statistics; the report has the numbers. It can also write what it would submit."""

    on_paper: list[str] | None = None  # lines for a shell that submit what was not submitted

    @property
    def script(self) -> str:
        """The path of the script that `sbatch` is given."""
        return self.logging_dir.resolve_paths("launch_script.slurm")

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """datatrove's, without the partition where none is named: clusters have a default."""
        return {key: value for key, value in super().get_sbatch_args(max_array).items() if value is not None}

    def launch_merge_stats(self) -> None:
        """Nothing."""

    def launch_job(self) -> None:
        """datatrove's; on paper, a line for a shell takes the place of the call of `sbatch`, and a variable that of the job's number."""
        lines = self.on_paper
        if lines is None:
            super().launch_job()
            return

        def write(script: str, job_id_retriever: Any, *arguments: str) -> str:
            lines.append(f"job{len(lines)}=$(sbatch --parsable {' '.join(arguments)} {self.script})")
            return f"$job{len(lines) - 1}"

        submit, slurm.launch_slurm_job = slurm.launch_slurm_job, write
        try:
            super().launch_job()
        finally:
            slurm.launch_slurm_job = submit


def _claim(run: RunConfig, tasks: int | None, default: int | None) -> Job:
    """Take the folder as `prepare.claim` does, and deal the files to the tasks where that has not been done."""
    if tasks is not None and tasks < 1:
        raise ConfigError(f"tasks = {tasks}: must be at least 1")
    job = claim(run)
    path = job.folder / WORK / TASKS
    if (job.folder / MANIFEST).exists():
        return job
    if not path.exists():
        if path.parent.exists():
            raise DataError(
                f"data.prepared = {run.data.prepared!r}: was begun on one machine; go on with --executor own, or name another folder"
            )
        shutil.rmtree(job.folder / LOGS, ignore_errors=True)  # its markers speak of files that are gone
        files = _files(job)
        job.work()
        write_json(path, deal(files, tasks or default or min(len(files), MAX_ARRAY)))
    begun = len(_tasks(job))
    if tasks is not None and tasks != begun:
        raise ConfigError(f"tasks = {tasks}: {run.data.prepared} was begun with {begun}; use that, or name another folder")
    return job


def _files(job: Job) -> list[tuple[str, str | None, int]]:
    """(source, path, bytes) in the order of `prepare`; bytes are 0 for what cannot be known or divided: the corpus and the Hub."""
    found = list[tuple[str, str | None, int]]()
    for name, source in job.data.sources.items():
        path = Path(source.path or "")
        if source.path is None or not path.exists():
            found.append((name, source.path, 0))
        else:
            found += ((name, str(file), file.stat().st_size) for file in text_files(path))
    return found


def deal(files: Sequence[tuple[str, str | None, int]], tasks: int) -> list[list[tuple[str, list[str | None]]]]:
    """For every task a run of the files (source, path, bytes), all runs of about equal size; a file of unknown size is as large as a task's share."""
    share = max(sum(size for _, _, size in files) // tasks, 1)
    sizes = [size or share for _, _, size in files]
    dealt: list[list[tuple[str, list[str | None]]]] = [[] for _ in range(tasks)]
    before = 0
    for (source, path, _), size in zip(files, sizes, strict=True):
        own = dealt[(2 * before + size) * tasks // (2 * sum(sizes))]  # the task into whose share the middle of the file falls
        before += size
        if not own or own[-1][0] != source:
            own.append((source, []))
        own[-1][1].append(path)
    return dealt


def _logs(job: Job, stage: Stage) -> Path:
    """Where datatrove keeps a stage's logs, scripts and the marks of complete tasks."""
    return job.folder / LOGS / stage.name


def _is_done(job: Job, say: Say) -> bool:
    done = (job.folder / MANIFEST).exists()
    if done:
        say(f"{job.folder} is prepared already; remove it to prepare it again")
    return done
