"""The scripts that start a run: torchrun on a node, and a SLURM job of several.

A node runs one torchrun, which starts a process for each of its GPUs, and starts them
again from the newest checkpoint where one fails. A SLURM job starts that torchrun on
each of its nodes. Shortly before its time is up, SLURM warns the script; the processes
save and end, and the job goes back into the queue until the run is complete.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slm2_minimal.config import ConfigError, RunConfig
from slm2_minimal.launch.check import nodes_of
from slm2_minimal.launch.memory import GPUS_PER_NODE

MAX_RESTARTS = 3  # of a failed process, before a person should look at it
WARNING = 300  # seconds before a job's end at which SLURM warns
SAVING = 270  # of these, what the processes have to save and end
# Asked for with each GPU of a node that is shared with others: assumptions
CORES_PER_GPU, GIGABYTES_PER_GPU = 4, 60


def scripts(
    config: RunConfig,
    words: Sequence[str],
    gpus: int,
    folder: Path,
    options: Mapping[str, str | None] | None = None,
    *,
    gpus_per_node: int = GPUS_PER_NODE,
    prologue: str = "",
) -> dict[str, str]:
    """The texts of `torchrun.sh`, for a node, and of `slurm.sh`, which runs it on each.

    Both belong in `folder`. `words` are the arguments of `slm2 train` that gave
    `config`. `options` are sbatch's by their long names, "" for one without a value;
    they replace ours, and None takes ours away. `prologue` are lines of bash that every
    node runs first. Raises ConfigError for an option that cannot stand in a script.
    """
    folder = folder.absolute()
    nodes, per_node = nodes_of(gpus, gpus_per_node)
    run_dir = Path(config.train.output_dir).absolute()

    # Whole nodes are ours alone; of others we take our share
    share = {"exclusive": "", "mem": "0"}
    if per_node < gpus_per_node:
        cores, gigabytes = per_node * CORES_PER_GPU, per_node * GIGABYTES_PER_GPU
        share = {"cpus-per-task": str(cores), "mem": f"{gigabytes}G"}

    directives = {
        "job-name": f"slm2-{run_dir.name}",
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(per_node),
        **share,
        "time": "24:00:00",
        "requeue": "",
        "signal": f"B:USR1@{WARNING}",
        "output": str(folder).replace("%", "%%") + "/%x-%j.log",
        "open-mode": "append",
        **(options or {}),
    }
    last = run_dir / f"step-{config.train.steps:08d}"
    return {
        "torchrun.sh": _torchrun_script(words, nodes, per_node, prologue),
        "slurm.sh": _slurm_script(directives, folder / "torchrun.sh", last),
    }


def _torchrun_script(words: Sequence[str], nodes: int, per_node: int, prologue: str) -> str:
    meeting = "--standalone"
    if nodes > 1:
        meeting = (
            '--rdzv-backend=c10d --rdzv-endpoint="${RENDEZVOUS:?HOST:PORT of the first node}"'
            ' --rdzv-id="${SLURM_JOB_ID:-slm2}"'
        )
    return f"""\
#!/bin/bash
# torchrun for {per_node} of {nodes * per_node} processes, which it starts again \
from the newest checkpoint where one of them fails.
{prologue}
cd {shlex.quote(os.getcwd())} || exit
# Seconds that the processes have to save once they are told to end. \
torchrun's own 30 are too few for a large checkpoint.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING}
# A store of its own for every start: in a shared one, \
processes that are started again find the addresses of those that died.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec {shlex.quote(sys.executable)} -m slm2_minimal.launch.torchrun --nnodes={nodes} \
--nproc-per-node={per_node} --max-restarts={MAX_RESTARTS} \\
    {meeting} \\
    -m slm2_minimal train {shlex.join(words)}
"""


def _directive(key: str, value: str) -> str:
    """A line that sbatch reads. Raises ConfigError for what would not be one."""
    if not re.fullmatch("[a-z][a-z-]*", key) or re.search("[\0-\x1f]", value):
        raise ConfigError(
            f"sbatch = {f'{key}={value}'!r}: cannot stand in the script; give a long name without"
            " dashes in front, and a value on one line"
        )
    return f"#SBATCH --{key}" + (f"={shlex.quote(value)}" if value else "")


def _slurm_script(directives: Mapping[str, str | None], torchrun: Path, last: Path) -> str:
    """`last` is the checkpoint whose presence says that the run is complete."""
    given = {key: value for key, value in directives.items() if value is not None}
    header = "\n".join(_directive(key, value) for key, value in given.items())
    return f"""\
#!/bin/bash
{header}

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$first:$((20000 + SLURM_JOB_ID % 10000))"
export NCCL_DEBUG="${{NCCL_DEBUG:-WARN}}"  # NCCL says which connection failed; \
by itself it is silent

# SLURM warns this script {WARNING} seconds before its time is up, \
and the script passes that on to the processes: not by a signal to srun,
# which would kill them. The warning is USR1 because TERM also comes from scancel, \
after which nobody wants the job back.
warned=
trap 'warned=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1

# No node is ended because another has: it may still be writing its part of a checkpoint. \
All cores are for all processes.
srun --kill-on-bad-exit=0 --wait=0 --cpu-bind=none --label bash {shlex.quote(str(torchrun))} &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done  \
# a signal ends `wait`, not the step

[ -e {shlex.quote(str(last))} ] && exit 0
[ -n "$warned" ] && exec scontrol requeue "$SLURM_JOB_ID"
exit "$code"  # stopped by hand, or a failure that another start would only meet again
"""
