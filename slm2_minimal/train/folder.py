"""A run's folder: one run at a time, and a note of how it was started."""

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

import torch

from slm2_minimal.config import DataError, RunConfig
from slm2_minimal.distributed.world import World
from slm2_minimal.files import locked, write_json

LOCK, NOTE = ".lock", "run.json"


@contextmanager
def alone(run_dir: Path, world: World) -> Iterator[None]:
    """Hold the folder, made where it is missing, against other runs.

    Raises DataError, on every rank, where another process trains into it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = locked(run_dir / LOCK) if world.is_first else nullcontext()

    # the first rank asks, and all hear
    try:
        lock.__enter__()
        is_ours = True
    except BlockingIOError:
        is_ours = False
    if not all(world.gather(is_ours)):
        raise DataError(
            f"train.output_dir = {str(run_dir)!r}: another run is at work there; "
            "let it end, or name another folder"
        )

    # it is let go however the run ends
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
        if world.is_first and [path.name for path in run_dir.iterdir()] == [LOCK]:
            shutil.rmtree(run_dir)  # nothing came of it


def write_note(run_dir: Path, config: RunConfig, world: World) -> None:
    """What runs: the whole configuration, versions, commit, command and time."""
    if not world.is_first:
        return
    write_json(
        run_dir / NOTE,
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "processes": world.size,
            "slm2_minimal": version("slm2-minimal"),
            "commit": commit(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "config": config.to_dict(),
        },
    )


def commit() -> str | None:
    """The commit of the checkout that the package lies in, if it is in one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
