"""`slm2 launch`: check a run, write its scripts, start it."""

import dataclasses
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slm2_minimal.config import ConfigError, RunConfig
from slm2_minimal.config.paths import expand
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
    options: Mapping[str, str | None] | None = None,
    *,
    gpus_per_node: int = GPUS_PER_NODE,
    prologue: str | None = None,
    dry_run: bool = False,
) -> None:
    """Check the run, write its scripts into `folder`, and start it, unless `dry_run`.

    `folder` left out is `launch` in the run's own. One node is this machine, and
    torchrun takes the place of this process. Several, or any with `options`, are
    submitted to SLURM. `prologue` names a file of bash; see `scripts`.

    Raises what `check` and `scripts` do, ConfigError for a prologue that is no bash or
    where there is no `sbatch`, and RuntimeError where `sbatch` refused.
    """
    # hybrid shares within a node, however many GPUs that has
    if config.parallel.strategy == "hybrid" and config.parallel.shard_ranks is None:
        parallel = config.parallel.replace(shard_ranks=min(gpus, gpus_per_node))
        config = dataclasses.replace(config, parallel=parallel)

    for line in check(config, gpus, gpu, gpus_per_node=gpus_per_node):
        logger.info(line)
    slurm = gpus > gpus_per_node or bool(options)
    if slurm and not dry_run and not shutil.which("sbatch"):
        raise ConfigError(
            "sbatch: not on this machine; go to a login node of a SLURM cluster, or add --dry-run"
            " to write the scripts"
        )

    folder = folder or Path(config.train.output_dir) / "launch"
    lines = "" if prologue is None else read_prologue(prologue)
    texts = scripts(
        config, words, gpus, folder, options, gpus_per_node=gpus_per_node, prologue=lines
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with whole_file(folder / name) as file:
            file.write(os.fsencode(text))

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


def read_prologue(prologue: str) -> str:
    """The lines of a file of bash. Raises ConfigError where it is none."""
    path = Path(expand(prologue, "prologue"))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prologue = {prologue!r}: {error}; give a file of bash") from None
    said = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False).stderr
    if said:
        raise ConfigError(f"prologue = {prologue!r}: {said.splitlines()[0]}; mend that line")
    return text
