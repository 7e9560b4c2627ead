"""`slm2 prepare --executor local|slurm`: the same stages, each shared by tasks on one
machine or on many, with datatrove (extra `cluster`).

The files of all sources, in their order, are dealt to the tasks in runs of about equal
size. So documents stay in the order of `prepare`, and what comes out is the same,
document for document; only the borders between shards lie elsewhere.

On SLURM, datatrove's executor runs the tasks. On one machine they run in our own
processes: its pool waits for ever for one that was killed. Both leave its marks of the
tasks that are complete.
"""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from slm2_minimal.config import ConfigError, DataError, MissingExtraError, RunConfig

try:
    import dill
    from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
except ImportError:
    raise MissingExtraError(
        "datatrove", "cluster", "prepare with --executor local or slurm"
    ) from None

from slm2_minimal.data.shards import MANIFEST
from slm2_minimal.prepare.handover import is_sealed, read_record, write_record
from slm2_minimal.prepare.publish import PrepareReport, is_prepared, publish
from slm2_minimal.prepare.run import claim, mark_duplicates, report_of, require_documents, text_read
from slm2_minimal.prepare.units import Unit, ingest, local_files
from slm2_minimal.prepare.work import Job, benchmark_index, key_unit, tokenise_unit
from slm2_minimal.prepare.workers import in_parallel

TASKS = "tasks.json"
LOGS = "logs"
MAX_TASKS = 100_000
MAX_ARRAY = 1000  # elements of one SLURM job array: its own default limit is 1001

SourceFile = tuple[str, str | None, int | None]  # source, path, bytes
Share = list[tuple[str, list[Any]]]  # a task's sources, and which of their files, None or paths
Work = Callable[[Job, int], object]  # what a task does, by its rank

log = logging.getLogger(__name__)


def run_local(run: RunConfig, tasks: int | None = None) -> PrepareReport:
    """Prepare on this machine, in `tasks` (by default one per worker) that
    `prepare.workers` processes share.

    Raises as `prepare`, and ConfigError for other `tasks` than the folder was begun
    with.
    """
    return report_of(_claim(run, tasks, run.prepare.workers or os.cpu_count() or 1), _run_stages)


def _run_stages(job: Job) -> None:
    for stage, work, count in stages(job):
        executor = LocalPipelineExecutor([], count, logging_dir=_logs(job, stage))
        if ranks := executor.get_incomplete_ranks():
            task = partial(_run_task, job, work, executor)
            so_far = partial(text_read, job) if stage == "read" else str
            in_parallel(stage, task, ranks, job.config.workers, so_far)
        else:
            log.info(f"{stage:<8} | complete")


def _run_task(job: Job, work: Work, executor: LocalPipelineExecutor, rank: int) -> None:
    work(job, rank)
    executor.mark_rank_as_completed(rank)


def run_slurm(
    run: RunConfig,
    tasks: int | None = None,
    options: Mapping[str, str | None] | None = None,
    *,
    dry_run: bool = False,
) -> None:
    """Write a script per stage, and one that submits them, each after the one before;
    and run that, unless `dry_run`.

    `tasks`: by default as many as there are files, at most MAX_ARRAY. `options` are
    `sbatch`'s by their long names, over the defaults of 24 hours, one core and 4 GB for
    a task. `prepare.workers`, but for 0, is how many tasks may run at a time.

    Raises:
        ConfigError: no `sbatch` here, or a folder that the scripts cannot name.
        RuntimeError: `sbatch` refused. Else as `run_local`.
    """
    if not dry_run and not shutil.which("sbatch"):
        raise ConfigError(
            "executor = 'slurm': there is no sbatch on this machine; go to a login node, or add"
            " --dry-run to write the scripts"
        )
    if run.data.prepared and len(str(Path(run.data.prepared).resolve()).split()) > 1:
        raise ConfigError(
            f"data.prepared = {run.data.prepared!r}: datatrove's scripts do not quote it; name a"
            " folder without blanks"
        )

    # The scripts, and one that submits them
    job = _claim(run, tasks, None)
    if is_prepared(job):
        return
    executors = [_slurm_executor(job, options or {}, *stage) for stage in stages(job)]
    scripts = [_write_script(executor) for executor in executors]
    submit = job.folder.resolve() / LOGS / "submit.sh"
    to_submit = [script for script in scripts if script]
    submit.write_text(_submission(to_submit))

    # Submit, and say what became of each stage
    states = iter(to_submit if dry_run else _submit(submit))
    for executor, script in zip(executors, scripts, strict=True):
        count = "1 task" if executor.tasks == 1 else f"{executor.tasks} tasks"
        state = next(states) if script else "complete"
        log.info(f"{executor.job_name:<15} | {count} | {state}")
    if dry_run:
        log.info(f"nothing was submitted; to do it, in this order: bash {submit}")


def _slurm_executor(
    job: Job, options: Mapping[str, str | None], stage: str, work: Work, count: int
) -> SlurmPipelineExecutor:
    """The tasks of one stage as one job array."""
    return SlurmPipelineExecutor(
        [partial(_step, job, work)],
        count,
        time="24:00:00",
        partition=None,
        mem_per_cpu_gb=4,
        workers=job.config.workers or -1,
        job_name=f"slm2-{stage}",
        qos=None,
        env_command=f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
        sbatch_args={"chdir": os.getcwd(), "kill-on-invalid-dep": "yes", **options},
        max_array_size=MAX_ARRAY,
        tasks_per_job=-(-count // MAX_ARRAY),
        logging_dir=_logs(job, stage),
    )


def _step(job: Job, work: Work, data: object, rank: int, world_size: int) -> None:
    """As datatrove calls it. Nothing is handed on: all is in the job's folder."""
    work(job, rank)


def _write_script(executor: SlurmPipelineExecutor) -> str | None:
    """Write a stage's script, and what datatrove runs there; None if all is complete.

    Its own `launch_job` has no dry run, needs a partition, and adds a job.
    """
    if not (ranks := executor.get_incomplete_ranks()):
        return None
    folder = executor.logging_dir
    with folder.open("executor.pik", "wb") as file:
        dill.dump(executor, file, fmode=dill.CONTENTS_FMODE)
    with folder.open("ranks_to_run.json", "w") as file:
        json.dump(ranks, file)
    arguments = executor.get_sbatch_args(-(-len(ranks) // executor.tasks_per_job))
    arguments = {key: value for key, value in arguments.items() if value is not None}
    command = f"srun -l -n 1 launch_pickled_pipeline {folder.resolve_paths('executor.pik')}"
    with folder.open("launch_script.slurm", "w") as file:
        file.write(executor.get_launch_file_contents(arguments, command))
    return folder.resolve_paths("launch_script.slurm")


def _submission(scripts: Sequence[str]) -> str:
    """A script that submits the others in a chain, and prints the jobs' numbers."""
    lines = ["#!/bin/bash", "# Each stage starts when the one before has ended well.", "set -e"]
    after = ""
    for number, script in enumerate(scripts):
        options = f"--parsable --export=ALL,RUN_OFFSET=0{after}"
        lines.append(f"job{number}=$(sbatch {options} {script})")
        after = f" --dependency=afterok:$job{number}"
    lines += [f"echo job $job{number}" for number in range(len(scripts))]
    return "\n".join([*lines, ""])


def _submit(script: Path) -> list[str]:
    """Run the script; a line for each job, with its number."""
    result = subprocess.run(["bash", script], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise RuntimeError(
            f"sbatch ended with {result.returncode}, what it said is above; mend that and run the"
            " same again"
        )
    return result.stdout.splitlines()


# What the tasks do


def _units_path(job: Job, rank: int) -> Path:
    return job.work / "units" / f"{rank:06d}.json"


def read(job: Job, rank: int) -> None:
    """Read and filter a task's files into units, and write the units' keys."""
    path = _units_path(job, rank)
    if not is_sealed(path):
        units = []
        for source, paths in shares(job)[rank]:
            how = job.data.sources[source]
            units += ingest(job.text, source, how, job.config, rank, paths)
        write_record(path, units)
    if job.config.duplicates != "keep":
        for unit in units_of(job, rank):
            key_unit(job, unit)


def compare(job: Job, rank: int) -> None:
    """Find the duplicates among all units."""
    units = all_units(job)
    require_documents(job, units)
    mark_duplicates(job, units)


def tokenise(job: Job, rank: int) -> None:
    """Write the shards of a task's units."""
    for unit in units_of(job, rank):
        tokenise_unit(job, unit)


def publish_all(job: Job, rank: int) -> None:
    """Join what the tasks left, unless that was done just before a stop."""
    if not (job.folder / MANIFEST).exists():
        units = all_units(job)
        results = [tokenise_unit(job, unit) for unit in units]  # they are there, and only read
        publish(job, units, results, mark_duplicates(job, units))


def units_of(job: Job, rank: int) -> list[Unit]:
    """The units that a task has read."""
    return read_record(_units_path(job, rank), list[Unit])


def all_units(job: Job) -> list[Unit]:
    """The units of all tasks in order, counted as if one task had read each source."""
    units: list[Unit] = []
    last: dict[str, Unit] = {}  # of each source so far
    for rank in range(len(shares(job))):
        before = dict(last)
        for unit in units_of(job, rank):
            if end := before.get(unit.source):
                skipped = dict(Counter(end.skipped) + Counter(unit.skipped))
                unit = replace(unit, read=end.read + unit.read, skipped=skipped)
            units.append(unit)
            last[unit.source] = unit
    return units


STAGES: dict[str, Work] = {
    "read": read,
    "compare": compare,
    "tokenise": tokenise,
    "publish": publish_all,
}


def stages(job: Job) -> list[tuple[str, Work, int]]:
    """Each stage with its work and number of tasks, to be run one after another."""
    tasks = len(shares(job))
    together = ("compare", "publish")
    return [(stage, work, 1 if stage in together else tasks) for stage, work in STAGES.items()]


# Files and tasks


def _claim(run: RunConfig, tasks: int | None, default: int | None) -> Job:
    """As `run.claim`; deals the files to the tasks once, and indexes the benchmarks."""
    if tasks is not None and not 1 <= tasks <= MAX_TASKS:
        raise ConfigError(f"tasks = {tasks}: must be from 1 to {MAX_TASKS:,}")

    # Nothing is dealt twice
    job = claim(run)
    if (job.folder / MANIFEST).exists():
        return job
    path = job.work / TASKS
    if not path.exists():
        if job.text.exists():
            raise DataError(
                f"data.prepared = {run.data.prepared!r}: was begun on one machine; go on with"
                " --executor own, or name another folder"
            )
        for stage in STAGES:  # their marks are of files long removed
            shutil.rmtree(job.folder / LOGS / stage, ignore_errors=True)
        files = source_files(job)
        write_record(path, deal(files, tasks or default or min(len(files), MAX_ARRAY)))

    # A folder goes on with the tasks that it was begun with
    begun = len(shares(job))
    if tasks is not None and tasks != begun:
        raise ConfigError(
            f"tasks = {tasks}: {run.data.prepared} was begun with {begun}; use that, or name"
            " another folder"
        )
    benchmark_index(job)
    return job


def source_files(job: Job) -> list[SourceFile]:
    """All files in the order of `prepare`.

    The bytes are None for what cannot be measured or divided: the corpus and the Hub.
    """
    files: list[SourceFile] = []
    for name, source in job.data.sources.items():
        local = [(name, file, about.st_size) for file, about in local_files(source.path)]
        files += local or [(name, source.path, None)]
    return files


def deal(files: Sequence[SourceFile], tasks: int) -> list[Share]:
    """For every task a run of the files, of about equal size; some may have none.

    A task has the files whose middles fall into its part of all bytes. What has no size
    counts as one such part.
    """
    known = sum(size or 0 for _, _, size in files)
    sizes = [max(known // tasks, 1) if size is None else size for _, _, size in files]
    total = max(sum(sizes), 1)
    before = 0
    dealt: list[Share] = [[] for _ in range(tasks)]
    for (source, path, _), size in zip(files, sizes, strict=True):
        share = dealt[min((2 * before + size) * tasks // (2 * total), tasks - 1)]
        before += size
        if not share or share[-1][0] != source:
            share.append((source, []))
        share[-1][1].append(path)
    return dealt


def shares(job: Job) -> list[Share]:
    """What `deal` gave to every task."""
    return read_record(job.work / TASKS, list[Share])


def _logs(job: Job, stage: str) -> str:
    """Where datatrove keeps a stage's logs, scripts and marks: an absolute path."""
    return str((job.folder / LOGS / stage).resolve())
