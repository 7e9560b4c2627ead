"""Before and at the start of a run: what can be known to be wrong is said at once, and
the scripts that start it are written.

A node runs one torchrun, which starts a process for each of its GPUs and starts them
again from the newest checkpoint where one fails. Several nodes are a SLURM job, whose
script starts that torchrun on each of them. Shortly before its time is up, SLURM warns
the script; the processes save and end, and the job goes back into the queue until the
run is complete.
"""

import os
from pathlib import Path

import torch

from slm2_minimal.config import CheckpointError, ConfigError, RunConfig
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.training_data import assemble, fitting_tokenizer
from slm2_minimal.distributed import checkpoint
from slm2_minimal.distributed.parallel import resolve_strategy
from slm2_minimal.distributed.world import World
from slm2_minimal.launch.memory import GPUS_PER_NODE, memory
from slm2_minimal.launch.planner import GPUS, RESERVE
from slm2_minimal.train import resume


def check(config: RunConfig, gpus: int, gpu: str | None = None) -> list[str]:
    """Hold a run on `gpus` processes against everything that can be known before it
    starts; return what was found, line by line.

    `gpu` is a name of `planner.GPUS`; left out, the memory is that of this machine's
    GPU, or is not checked where there is none. Data that is not prepared is read and
    tokenised as training would.

    Raises:
        ConfigError, DataError, CheckpointError: for the first thing that cannot be.
    """
    strategy, lines = _processes(config, gpus)
    lines.append(_memory(config, gpus, gpu, strategy))
    run = Path(config.train.output_dir)
    there = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"train.output_dir = {config.train.output_dir!r}: {there} cannot be written; name"
            " another folder"
        )
    loader, about = _data(config, gpus)
    return [*lines, *about, _checkpoint(config, run, loader.fingerprint())]


def _processes(config: RunConfig, gpus: int) -> tuple[str, list[str]]:
    """The strategy, `auto` decided; and that it, the nodes and the batch fit the number
    of processes.
    """
    parallel, train, length = config.parallel, config.train, config.data.seq_len
    nodes, per_node = _nodes(gpus)
    strategy = resolve_strategy(config, gpus)
    if strategy == "hybrid" and gpus % (parallel.shard_ranks or per_node):
        raise ConfigError(
            f"parallel.shard_ranks = {parallel.shard_ranks}: must divide the number of processes,"
            f" {gpus}"
        )
    if per_node % parallel.tensor_parallel:
        raise ConfigError(
            f"parallel.tensor_parallel = {parallel.tensor_parallel}: must divide the GPUs of a"
            f" node, {per_node}"
        )
    replicas = gpus // parallel.tensor_parallel
    once = replicas * train.micro_batch_size * length
    if train.global_batch_tokens % once:
        raise ConfigError(
            f"train.global_batch_tokens = {train.global_batch_tokens}: must be a multiple of {once}"
            f" = {replicas} x micro_batch_size x seq_len on {gpus} GPUs; the nearest is"
            f" {max(1, round(train.global_batch_tokens / once)) * once}"
        )
    return strategy, [
        f"processes   {gpus} = {nodes} node{'s' * (nodes > 1)} of {per_node}; {strategy}"
        + f", tensor_parallel {parallel.tensor_parallel}" * (parallel.tensor_parallel > 1),
        (
            f"batch       {train.global_batch_tokens:,} tokens = {replicas} x micro-batch"
            f" {train.micro_batch_size} x {length} x accumulation"
            f" {train.global_batch_tokens // once}"
        ),
    ]


def _nodes(gpus: int) -> tuple[int, int]:
    """(nodes, GPUs on each)."""
    if gpus < 1 or (gpus > GPUS_PER_NODE and gpus % GPUS_PER_NODE):
        nearest = max(1, round(gpus / GPUS_PER_NODE) * GPUS_PER_NODE)
        raise ConfigError(
            f"gpus = {gpus}: must lie between 1 and {GPUS_PER_NODE}, or fill nodes of"
            f" {GPUS_PER_NODE}; the nearest is {nearest}"
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
        return (
            f"memory      not checked: no GPU here; name the run's with --gpu ({', '.join(GPUS)})"
        )
    chosen = config.parallel
    needed = memory(config, gpus, strategy, chosen.checkpointing).total
    numbers = (
        f"{needed / 1e9:.1f} GB a rank, {RESERVE / 1e9:.0f} kept free, of {there / 1e9:.1f} on"
        f" {name}"
    )
    if chosen.tensor_parallel > 1:
        return f"memory      without tensor parallelism, which the planner leaves out: {numbers}"
    if needed + RESERVE > there:
        raise ConfigError(
            f"train.micro_batch_size = {config.train.micro_batch_size}: {strategy} with"
            f" checkpointing {chosen.checkpointing} needs {numbers} (planned); lower it, or change"
            " parallel.checkpointing or strategy: slm2 plan compares them"
        )
    return f"memory      {numbers} (planned)"


def _data(config: RunConfig, gpus: int) -> tuple[Loader, list[str]]:
    """The loader; that the tokenizer fits the model, the sources are there, and they
    hold enough text for the whole run.
    """
    data, train, tokenizer = config.data, config.train, fitting_tokenizer(config)
    if data.sources and data.prepared is None and gpus > GPUS_PER_NODE:
        raise ConfigError(
            f"data.prepared is not set: each of {gpus} processes would tokenise all of the text and"
            " hold it in memory; name a folder that all nodes see, and run slm2 prepare"
        )
    loader = assemble(data.replace(verify="sizes"), tokenizer).loader
    positions = train.steps * train.global_batch_tokens // data.seq_len
    loader.mixture.check(positions)
    epochs = ", ".join(f"{name} {count:.2f}" for name, count in loader.epochs(positions).items())
    return loader, [
        (
            f"tokenizer   {tokenizer.name}: {tokenizer.vocab_size:,} ids,"
            f" {config.model.vocab_size:,} rows in the model"
        ),
        (
            f"data        {data.prepared or 'not prepared'}: {sum(loader.counts):,} sequences of"
            f" {data.seq_len}; {train.steps:,} steps read {positions:,}"
        ),
        f"epochs      {epochs}",
    ]


def _checkpoint(config: RunConfig, run: Path, fingerprint: str) -> str:
    """Where the run begins; that a checkpoint it goes on from is whole, and of the same
    run, model and data.
    """
    start, found = config.train.start_from, resume.newest(run, World(torch.device("cpu")))
    if found:
        folder, state = found
        resume.check_same_run(folder, state, config.to_dict())
    elif start:
        folder, state = Path(start), checkpoint.read_state(Path(start))
        field, theirs, ours = checkpoint.first_difference(
            state["config"]["model"], config.to_dict()["model"]
        )
        if field:
            raise CheckpointError(
                f"model.{field} = {ours!r}: the checkpoint {start!r} has {theirs!r}; use the same"
                " model"
            )
    else:
        return f"output      {run}: a new run"
    resume.check_same_data(folder, state, fingerprint)
    return (
        f"output      {run}: goes on from {folder}, after step {state['step']:,} of"
        f" {config.train.steps:,}"
    )
