"""PLACE: say what this is."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slm2_minimal.config import ConfigError, RunConfig
from slm2_minimal.files import whole_file
from slm2_minimal.launch.check import check
from slm2_minimal.launch.memory import GPUS_PER_NODE
from slm2_minimal.launch.scripts import scripts


def launch(
    config: RunConfig,
    words: Sequence[str],
    gpus: int,
    gpu: str | None = None,
    folder: Path | None = None,
    options: Mapping[str, str] | None = None,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Check the run, write its scripts into `folder` (left out: `launch` in the run's
    own), and start it, unless `dry_run`.

    One node is this machine, and torchrun takes the place of this process; several, or
    any with `options`, are submitted to SLURM.

    Raises:
        ConfigError, DataError, CheckpointError: as `check`, and where there is no
        `sbatch`. RuntimeError: `sbatch` refused.
    """
    for line in check(config, gpus, gpu):
        say(line)
    slurm = gpus > GPUS_PER_NODE or bool(options)
    if slurm and not dry_run and not shutil.which("sbatch"):
        raise ConfigError(
            "sbatch: not on this machine; go to a login node of a SLURM cluster, or add --dry-run"
            " to write the scripts"
        )
    folder = folder or Path(config.train.output_dir) / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in scripts(config, words, gpus, folder, options).items():
        with whole_file(folder / name) as file:
            file.write(text.encode())
    command = (
        ["sbatch", str(folder / "slurm.sh")] if slurm else ["bash", str(folder / "torchrun.sh")]
    )
    if dry_run:
        say(f"nothing was started; to do it: {shlex.join(command)}")
    elif slurm:
        done = subprocess.run(command, check=False)
        if done.returncode:
            raise RuntimeError(
                f"sbatch ended with {done.returncode}, what it said is above; mend that and run the"
                " same again"
            )
    else:
        sys.stdout.flush()
        os.execvp(command[0], command)
