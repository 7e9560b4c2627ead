"""Before and at the start of a run: what can be known to be wrong is said at once, and the scripts that start it are written.

A node runs one torchrun, which starts a process for each of its GPUs and starts them again from the newest checkpoint where one fails.
Several nodes are a SLURM job, whose script starts that torchrun on each of them. Shortly before its time is up, SLURM warns the script;
the processes save and end, and the job goes back into the queue until the run is complete.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from slm2_minimal.config import CheckpointError, ConfigError, RunConfig, whole_file
from slm2_minimal.data.assemble import assemble, fitting_tokenizer
from slm2_minimal.data.loader import Loader
from slm2_minimal.train import checkpoint, resume
from slm2_minimal.train.memory import GPUS_PER_NODE, memory
from slm2_minimal.train.parallel import resolve
from slm2_minimal.train.planner import GPUS, RESERVE
from slm2_minimal.train.world import World

MAX_RESTARTS = 3  # of a failed process, before a person should look at it
WARNING, SAVING = 300, 270  # seconds before a job's end at which SLURM warns, and of these what the processes have to save and end


def check(config: RunConfig, gpus: int, gpu: str | None = None) -> list[str]:
    """Hold a run on `gpus` processes against everything that can be known before it starts; return what was found, line by line.

    `gpu` is a name of `planner.GPUS`; left out, the memory is that of this machine's GPU, or is not checked where there is none.
    Data that is not prepared is read and tokenised as training would.

    Raises:
        ConfigError, DataError, CheckpointError: for the first thing that cannot be.
    """
    strategy, lines = _processes(config, gpus)
    lines.append(_memory(config, gpus, gpu, strategy))
    run = Path(config.train.output_dir)
    there = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"train.output_dir = {config.train.output_dir!r}: {there} cannot be written; name another folder")
    loader, about = _data(config, gpus)
    return [*lines, *about, _checkpoint(config, run, loader.fingerprint())]


def _processes(config: RunConfig, gpus: int) -> tuple[str, list[str]]:
    """The strategy, `auto` decided; and that it, the nodes and the batch fit the number of processes."""
    parallel, train, length = config.parallel, config.train, config.data.seq_len
    nodes, per_node = _nodes(gpus)
    strategy = resolve(config, gpus)
    if strategy == "hybrid" and gpus % (parallel.shard_ranks or per_node):
        raise ConfigError(f"parallel.shard_ranks = {parallel.shard_ranks}: must divide the number of processes, {gpus}")
    if per_node % parallel.tensor_parallel:
        raise ConfigError(f"parallel.tensor_parallel = {parallel.tensor_parallel}: must divide the GPUs of a node, {per_node}")
    replicas = gpus // parallel.tensor_parallel
    once = replicas * train.micro_batch_size * length
    if train.global_batch_tokens % once:
        raise ConfigError(
            f"train.global_batch_tokens = {train.global_batch_tokens}: must be a multiple of {once} = {replicas} x micro_batch_size x "
            f"seq_len on {gpus} GPUs; the nearest is {max(1, round(train.global_batch_tokens / once)) * once}"
        )
    return strategy, [
        f"processes   {gpus} = {nodes} node{'s' * (nodes > 1)} of {per_node}; {strategy}"
        + f", tensor_parallel {parallel.tensor_parallel}" * (parallel.tensor_parallel > 1),
        f"batch       {train.global_batch_tokens:,} tokens = {replicas} x micro-batch {train.micro_batch_size} x {length} "
        f"x accumulation {train.global_batch_tokens // once}",
    ]


def _nodes(gpus: int) -> tuple[int, int]:
    """(nodes, GPUs on each)."""
    if gpus < 1 or (gpus > GPUS_PER_NODE and gpus % GPUS_PER_NODE):
        nearest = max(1, round(gpus / GPUS_PER_NODE) * GPUS_PER_NODE)
        raise ConfigError(
            f"gpus = {gpus}: must lie between 1 and {GPUS_PER_NODE}, or fill nodes of {GPUS_PER_NODE}; the nearest is {nearest}"
        )
    return -(-gpus // GPUS_PER_NODE), min(gpus, GPUS_PER_NODE)


def _memory(config: RunConfig, gpus: int, gpu: str | None, strategy: str) -> str:
    """That the planner's peak and its reserve fit the card."""
    if gpu is not None and gpu not in GPUS:
        raise ConfigError(f"gpu = {gpu!r}: unknown; choose one of {', '.join(GPUS)}")
    if gpu is not None:
        name, there = gpu, GPUS[gpu].memory
    elif config.train.device != "cpu" and torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        name, there = card.name, float(card.total_memory)
    else:
        return f"memory      not checked: no GPU here; name the run's with --gpu ({', '.join(GPUS)})"
    chosen = config.parallel
    needed = memory(config, gpus, strategy, chosen.checkpointing).total
    numbers = f"{needed / 1e9:.1f} GB a rank, {RESERVE / 1e9:.0f} kept free, of {there / 1e9:.1f} on {name}"
    if chosen.tensor_parallel > 1:
        return f"memory      without tensor parallelism, which the planner leaves out: {numbers}"
    if needed + RESERVE > there:
        raise ConfigError(
            f"train.micro_batch_size = {config.train.micro_batch_size}: {strategy} with checkpointing {chosen.checkpointing} needs "
            f"{numbers} (planned); lower it, or change parallel.checkpointing or strategy: slm2 plan compares them"
        )
    return f"memory      {numbers} (planned)"


def _data(config: RunConfig, gpus: int) -> tuple[Loader, list[str]]:
    """The loader; that the tokenizer fits the model, the sources are there, and they hold enough text for the whole run."""
    data, train, tokenizer = config.data, config.train, fitting_tokenizer(config)
    if data.sources and data.prepared is None and gpus > GPUS_PER_NODE:
        raise ConfigError(
            f"data.prepared is not set: each of {gpus} processes would tokenise all of the text and hold it in memory; "
            "name a folder that all nodes see, and run slm2 prepare"
        )
    loader = assemble(data.replace(verify="sizes"), tokenizer).loader
    positions = train.steps * train.global_batch_tokens // data.seq_len
    loader.mixture.check(positions)
    epochs = ", ".join(f"{name} {count:.2f}" for name, count in loader.epochs(positions).items())
    return loader, [
        f"tokenizer   {tokenizer.name}: {tokenizer.vocab_size:,} ids, {config.model.vocab_size:,} rows in the model",
        f"data        {data.prepared or 'not prepared'}: {sum(loader.counts):,} sequences of {data.seq_len}; "
        f"{train.steps:,} steps read {positions:,}",
        f"epochs      {epochs}",
    ]


def _checkpoint(config: RunConfig, run: Path, fingerprint: str) -> str:
    """Where the run begins; that a checkpoint it goes on from is whole, and of the same run, model and data."""
    start, found = config.train.start_from, resume.newest(run, World(torch.device("cpu")))
    if found:
        folder, state = found
        resume.check_same_run(folder, state, config.to_dict())
    elif start:
        folder, state = Path(start), checkpoint.read_state(Path(start))
        field, theirs, ours = checkpoint.first_difference(state["config"]["model"], config.to_dict()["model"])
        if field:
            raise CheckpointError(f"model.{field} = {ours!r}: the checkpoint {start!r} has {theirs!r}; use the same model")
    else:
        return f"output      {run}: a new run"
    resume.check_same_data(folder, state, fingerprint)
    return f"output      {run}: goes on from {folder}, after step {state['step']:,} of {config.train.steps:,}"


def scripts(config: RunConfig, words: Sequence[str], gpus: int, folder: Path, options: Mapping[str, str] | None = None) -> dict[str, str]:
    """The texts of `torchrun.sh`, what one node runs, and of `slurm.sh`, a job for `sbatch` that runs it on each; both belong in `folder`.

    `words` are the arguments of `python -m slm2_minimal.train` that gave `config`. `options` are sbatch's by their long names, over the
    defaults: 24 hours, and whole nodes where all their GPUs are used.
    """
    folder, (nodes, per_node) = folder.absolute(), _nodes(gpus)
    last = Path(config.train.output_dir).absolute() / f"step-{config.train.steps:08d}"
    directives = {
        "job-name": f"slm2-{last.parent.name}",
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(per_node),
        **({"exclusive": "", "mem": "0"} if per_node == GPUS_PER_NODE else {}),
        "time": "24:00:00",
        "requeue": "",
        "signal": f"B:USR1@{WARNING}",
        "output": f"{folder}/%x-%j.log",
        "open-mode": "append",
        **(options or {}),
    }
    return {
        "torchrun.sh": _torchrun_script(words, nodes, per_node),
        "slurm.sh": _slurm_script(directives, folder / "torchrun.sh", last),
    }


def _torchrun_script(words: Sequence[str], nodes: int, per_node: int) -> str:
    meeting = '--rdzv-backend=c10d --rdzv-endpoint="${RENDEZVOUS:?HOST:PORT of the first node}" --rdzv-id="${SLURM_JOB_ID:-slm2}"'
    return f"""\
#!/bin/bash
# torchrun for {per_node} of {nodes * per_node} processes, which it starts again from the newest checkpoint where one of them fails.
cd {shlex.quote(os.getcwd())} || exit
# Seconds that the processes have to save once they are told to end. torchrun's own 30 are too few for a large checkpoint.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING}
# A store of its own for every start: in a shared one, processes that are started again find the addresses of those that died.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec {shlex.quote(sys.executable)} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={per_node} --max-restarts={MAX_RESTARTS} \\
    {meeting if nodes > 1 else "--standalone"} \\
    -m slm2_minimal.train {shlex.join(words)}
"""


def _slurm_script(directives: Mapping[str, str], torchrun: Path, last: Path) -> str:
    """`last` is the checkpoint whose presence says that the run is complete."""
    lines = "\n".join(f"#SBATCH --{key}" + (f"={shlex.quote(value)}" if value else "") for key, value in directives.items())
    return f"""\
#!/bin/bash
{lines}

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$first:$((20000 + SLURM_JOB_ID % 10000))"
export NCCL_DEBUG="${{NCCL_DEBUG:-WARN}}"  # NCCL says which connection failed; by itself it is silent

# SLURM warns this script {WARNING} seconds before its time is up, and the script passes that on to the processes: not by a signal to srun,
# which would kill them. The warning is USR1 because TERM also comes from scancel, after which nobody wants the job back.
warned=
trap 'warned=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1

# No node is ended because another has: it may still be writing its part of a checkpoint. All cores are for all processes.
srun --kill-on-bad-exit=0 --wait=0 --cpu-bind=none --label bash {shlex.quote(str(torchrun))} &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done  # a signal ends `wait`, not the step

[ -e {shlex.quote(str(last))} ] && exit 0
[ -n "$warned" ] && exec scontrol requeue "$SLURM_JOB_ID"
exit "$code"  # stopped by hand, or a failure that another start would only meet again
"""


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
    """Check the run, write its scripts into `folder` (left out: `launch` in the run's own), and start it, unless `dry_run`.

    One node is this machine, and torchrun takes the place of this process; several, or any with `options`, are submitted to SLURM.

    Raises:
        ConfigError, DataError, CheckpointError: as `check`, and where there is no `sbatch`. RuntimeError: `sbatch` refused.
    """
    for line in check(config, gpus, gpu):
        say(line)
    slurm = gpus > GPUS_PER_NODE or bool(options)
    if slurm and not dry_run and not shutil.which("sbatch"):
        raise ConfigError("sbatch: not on this machine; go to a login node of a SLURM cluster, or add --dry-run to write the scripts")
    folder = folder or Path(config.train.output_dir) / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in scripts(config, words, gpus, folder, options).items():
        with whole_file(folder / name) as file:
            file.write(text.encode())
    command = ["sbatch", str(folder / "slurm.sh")] if slurm else ["bash", str(folder / "torchrun.sh")]
    if dry_run:
        say(f"nothing was started; to do it: {shlex.join(command)}")
    elif slurm:
        done = subprocess.run(command, check=False)
        if done.returncode:
            raise RuntimeError(f"sbatch ended with {done.returncode}, what it said is above; mend that and run the same again")
    else:
        sys.stdout.flush()
        os.execvp(command[0], command)
