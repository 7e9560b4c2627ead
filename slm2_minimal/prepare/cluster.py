"""`slm2 prepare --executor local|slurm`: the stages of `prepare` on datatrove's
executors, on one machine or on many (extra `cluster`).

The files of all sources, in their order, are dealt to the tasks in runs of about equal
size. So the order of tasks, and within a task of documents, is the order of `prepare`,
and the same document of every cluster of duplicates stays. What comes out is
`prepare`'s, document for document; only the borders between shards lie elsewhere. The
steps are in `cluster_steps`.
"""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from slm2_minimal.config import ConfigError, DataError, MissingExtraError, RunConfig

try:
    from datatrove.executor import slurm
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.utils.logging import logger, setup_default_logger
except ImportError:
    raise MissingExtraError(
        "datatrove", "cluster", "prepare with --executor local or slurm"
    ) from None

from slm2_minimal.data.shards import MANIFEST
from slm2_minimal.files import read_json, write_json
from slm2_minimal.prepare.cluster_steps import TASKS, Stage, dealt_files, pipelines
from slm2_minimal.prepare.publish import REPORT, summary
from slm2_minimal.prepare.run import claim
from slm2_minimal.prepare.work import WORK, Job
from slm2_minimal.prepare.workers import Say, in_parallel
from slm2_minimal.text.documents import text_files

LOGS = "logs"
MAX_ARRAY = 1000  # elements of one SLURM job array: its own default limit is 1001


def run_local(run: RunConfig, tasks: int | None = None, say: Say = print) -> dict[str, Any]:
    """Prepare on this machine, in `tasks` (one per worker where not given) that
    `prepare.workers` processes share; return the report.

    Raises:
        ConfigError, DataError: as `prepare`, and another number of tasks than the
        folder was begun with. RuntimeError: a process was killed. What was written
        stays, datatrove has marked the tasks that were complete, and the same call goes
        on from there.
    """
    job = _claim(run, tasks, run.prepare.workers or os.cpu_count() or 1)
    if _is_done(job, say):
        return read_json(job.folder / REPORT)
    try:
        for stage in pipelines(job, len(dealt_files(job))):
            executor = LocalPipelineExecutor(
                stage.steps, stage.tasks, logging_dir=str(_logs(job, stage))
            )
            ranks = executor.get_incomplete_ranks()
            if ranks:
                executor.save_executor_as_json()
                in_parallel(job, stage.name, functools.partial(_run_task, executor), ranks, say)
            else:
                say(f"{stage.name:<8} | complete")
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died, perhaps out of memory; run the same again, with fewer"
            " prepare.workers"
        ) from None
    report: dict[str, Any] = read_json(job.folder / REPORT)
    for line in summary(report):
        say(line)
    return report


def run_slurm(
    run: RunConfig,
    tasks: int | None = None,
    options: Mapping[str, str] | None = None,
    *,
    dry_run: bool = False,
    say: Say = print,
) -> None:
    """Submit a job array per stage, each after the one before; with `dry_run`, write
    the scripts, and one that submits them.

    `tasks`: as many as there are files, at most MAX_ARRAY, where not given. `options`
    are `sbatch`'s by their long names, over the defaults of 24 hours, one core and 4 GB
    for a task. `prepare.workers`, where it is not 0, is how many tasks may run at a
    time.

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
    job = _claim(run, tasks, None)
    if _is_done(job, say):
        return
    commands = list[str]() if dry_run else None
    executors = _chain(job, options or {}, commands)
    logger.remove()
    try:
        executors[-1].launch_job()
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"sbatch ended with {error.returncode}, what it said is above; mend that and run the"
            " same again"
        ) from None
    finally:
        setup_default_logger()
    for executor in executors:
        state = (
            "complete"
            if executor.job_id == -1
            else executor.script
            if dry_run
            else f"job {executor.job_id}"
        )
        say(f"{executor.job_name:<15} | {_count(executor.tasks)} | {state}")
    if commands is not None:
        path = job.folder / LOGS / "submit.sh"
        path.write_text(
            "\n".join(
                [
                    "#!/bin/bash",
                    "# Each stage starts when the one before has ended well.",
                    "set -e",
                    *commands,
                    "",
                ]
            )
        )
        say(f"nothing was submitted; to do it, in this order: bash {path.resolve()}")


def _chain(job: Job, options: Mapping[str, str], commands: list[str] | None) -> list["_Slurm"]:
    """An executor per stage, each depending on the one before."""
    executors = list[_Slurm]()
    for stage in pipelines(job, len(dealt_files(job))):
        executor = _Slurm(
            stage.steps,
            stage.tasks,
            time="24:00:00",
            partition=None,
            mem_per_cpu_gb=4,
            workers=job.config.workers or -1,
            job_name=f"slm2-{stage.name}",
            qos=None,
            env_command=f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
            sbatch_args={"chdir": os.getcwd(), "kill-on-invalid-dep": "yes", **options},
            max_array_size=MAX_ARRAY,
            tasks_per_job=-(
                -stage.tasks // MAX_ARRAY
            ),  # datatrove lets a stage depend on the last array of the one before only
            depends=executors[-1] if executors else None,
            logging_dir=str(_logs(job, stage)),
        )
        executor.on_paper = commands
        executors.append(executor)
    return executors


def _run_task(executor: LocalPipelineExecutor, job: Job, rank: int) -> None:
    """One task, its lines in files only. Not in datatrove's own pool, which waits for
    ever for a process that was killed.
    """
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        executor._run_for_rank(rank)


class _Slurm(slurm.SlurmPipelineExecutor):  # type: ignore[misc]
    """datatrove's executor without its job of merged statistics; the report has the
    numbers. It can also write what it would submit.
    """

    on_paper: list[str] | None = None  # lines for a shell that submit what was not submitted

    @property
    def script(self) -> str:
        """The path of the script that `sbatch` is given."""
        return self.logging_dir.resolve_paths("launch_script.slurm")

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """datatrove's, without the partition where none is named: clusters have a
        default.
        """
        return {
            key: value
            for key, value in super().get_sbatch_args(max_array).items()
            if value is not None
        }

    def launch_merge_stats(self) -> None:
        """Nothing."""

    def launch_job(self) -> None:
        """datatrove's; on paper, a line for a shell takes the place of the call of
        `sbatch`, and a variable that of the job's number.
        """
        lines = self.on_paper
        if lines is None:
            super().launch_job()
            return

        def write(script: str, job_id_retriever: Any, *arguments: str) -> str:
            lines.append(
                f"job{len(lines)}=$(sbatch --parsable {' '.join(arguments)} {self.script})"
            )
            return f"$job{len(lines) - 1}"

        submit, slurm.launch_slurm_job = slurm.launch_slurm_job, write
        try:
            super().launch_job()
        finally:
            slurm.launch_slurm_job = submit


def _claim(run: RunConfig, tasks: int | None, default: int | None) -> Job:
    """Take the folder as `prepare.claim` does, and deal the files to the tasks where
    that has not been done.
    """
    if tasks is not None and tasks < 1:
        raise ConfigError(f"tasks = {tasks}: must be at least 1")
    job = claim(run)
    path = job.folder / WORK / TASKS
    if (job.folder / MANIFEST).exists():
        return job
    if not path.exists():
        if (path.parent / "text").exists():
            raise DataError(
                f"data.prepared = {run.data.prepared!r}: was begun on one machine; go on with"
                " --executor own, or name another folder"
            )
        shutil.rmtree(
            job.folder / LOGS, ignore_errors=True
        )  # its markers speak of files that are gone
        files = _files(job)
        job.work()
        write_json(path, deal(files, tasks or default or min(len(files), MAX_ARRAY)))
    begun = len(dealt_files(job))
    if tasks is not None and tasks != begun:
        raise ConfigError(
            f"tasks = {tasks}: {run.data.prepared} was begun with {begun}; use that, or name"
            " another folder"
        )
    return job


def _files(job: Job) -> list[tuple[str, str | None, int | None]]:
    """(source, path, bytes) in the order of `prepare`; bytes are None for what cannot
    be measured or divided: the corpus and the Hub.
    """
    found = list[tuple[str, str | None, int | None]]()
    for name, source in job.data.sources.items():
        path = Path(source.path or "").expanduser()
        if source.path is None or not path.exists():
            found.append((name, source.path, None))
        else:
            found += ((name, str(file), file.stat().st_size) for file in text_files(path))
    return found


def deal(
    files: Sequence[tuple[str, str | None, int | None]], tasks: int
) -> list[list[tuple[str, list[str | None]]]]:
    """For every task a run of the files (source, path, bytes), as its sources with
    their paths; some tasks may have none.

    The runs are of about equal size: a task has the files whose middles fall into its
    share. What has no size counts as one share.
    """
    known = sum(size or 0 for _, _, size in files)
    sizes = [max(known // tasks, 1) if size is None else size for _, _, size in files]
    total, before = max(sum(sizes), 1), 0
    dealt: list[list[tuple[str, list[str | None]]]] = [[] for _ in range(tasks)]
    for (source, path, _), size in zip(files, sizes, strict=True):
        own = dealt[min((2 * before + size) * tasks // (2 * total), tasks - 1)]
        before += size
        if not own or own[-1][0] != source:
            own.append((source, []))
        own[-1][1].append(path)
    return dealt


def _logs(job: Job, stage: Stage) -> Path:
    """Where datatrove keeps a stage's logs, scripts and marks of complete tasks:
    absolute, since it remembers folders by their names.
    """
    return (job.folder / LOGS / stage.name).resolve()


def _count(tasks: int) -> str:
    return f"{tasks} task{'s' * (tasks != 1)}"


def _is_done(job: Job, say: Say) -> bool:
    done = (job.folder / MANIFEST).exists()
    if done:
        say(f"{job.folder} is prepared already; remove it to prepare it again")
    return done
