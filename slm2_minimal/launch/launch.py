"""`slm2 launch`: check a run, write its scripts, start it."""

import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slm2_minimal.config import ConfigError, RunConfig
from slm2_minimal.files import whole_file
from slm2_minimal.launch.check import check
from slm2_minimal.launch.memory import GPUS_PER_NODE
from slm2_minimal.launch.scripts import scripts

logger = logging.getLogger(__name__)


def launch(
    config: RunConfig,
    words: Sequence[str],
    gpus: int,
    gpu: str | None = None,
    folder: Path | None = None,
    options: Mapping[str, str] | None = None,
    *,
    dry_run: bool = False,
) -> None:
    """Check the run, write its scripts into `folder`, and start it, unless `dry_run`.

    `folder` left out is `launch` in the run's own. One node is this machine, and
    torchrun takes the place of this process. Several, or any with `options`, are
    submitted to SLURM.

    Raises:
        ConfigError, DataError, CheckpointError: as `check`; and without `sbatch`.
        RuntimeError: `sbatch` refused.
    """
    for line in check(config, gpus, gpu):
        logger.info(line)
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

    program, script = ("sbatch", "slurm.sh") if slurm else ("bash", "torchrun.sh")
    command = [program, str(folder / script)]
    if dry_run:
        logger.info("nothing was started; to do it: %s", shlex.join(command))
    elif slurm:
        code = subprocess.run(command, check=False).returncode
        if code:
            raise RuntimeError(
                f"sbatch ended with {code}, what it said is above; mend that and run the same again"
            )
    else:
        sys.stdout.flush()
        os.execvp(program, command)
