"""`slm2 train --check`: what a run would be, or the first thing that is wrong with it.

What is refused here is refused by the run itself, by the same functions (`train/rules`,
`train/resume`). Only here are two things asked that a run finds out by itself: whether
the planned memory fits the GPU, and whether nodes are filled.
"""

import dataclasses
from pathlib import Path

import torch

from slm2_minimal.config import ConfigError, RunConfig
from slm2_minimal.data.training_data import TrainingData
from slm2_minimal.distributed.device import pick_device
from slm2_minimal.distributed.world import World
from slm2_minimal.evaluate.validation import MAX_SEQUENCES
from slm2_minimal.launch.memory import GPUS_PER_NODE, memory
from slm2_minimal.launch.planner import GPUS, RESERVE
from slm2_minimal.train import resume, rules
from slm2_minimal.train.schedule import learning_rate


def check(
    config: RunConfig,
    gpus: int,
    gpu: str | None = None,
    *,
    gpus_per_node: int = GPUS_PER_NODE,
    launched: bool = True,
) -> list[str]:
    """What was found, line by line, of a run on `gpus` processes.

    `gpu` is a name of `planner.GPUS`. Left out, the memory is that of this machine's
    GPU, and is not checked where there is none. `launched` says whether torchrun would
    start the processes. Text that is not prepared is read and tokenised as training
    would. Raises ConfigError, DataError or CheckpointError for the first thing that
    cannot be.
    """
    nodes, per_node = nodes_of(gpus, gpus_per_node)
    device = None if launched or gpu else pick_device(config.train.device)
    strategy = rules.check_run(config, gpus, per_node, launched=launched, device=device)
    rules.warn_of_an_early_end(config)
    memory_line = _memory(config, gpus, gpu, strategy)
    if config.data.sources and config.data.prepared is None and nodes > 1:
        raise ConfigError(
            f"data.prepared is not set: each of {gpus} processes would tokenise all of the text "
            "and hold it in memory; name a folder that all nodes see, and run slm2 prepare"
        )
    # The bytes of prepared shards are read by the run, their sizes are looked at here.
    by_size = dataclasses.replace(config, data=config.data.replace(verify="sizes"))
    tokenizer, data = rules.open_inputs(by_size)

    train, parallel, seq_len = config.train, config.parallel, config.data.seq_len
    replicas = gpus // parallel.tensor_parallel
    accumulation = train.global_batch_tokens // (replicas * train.micro_batch_size * seq_len)
    positions = rules.sequences_of(config)
    epochs = data.loader.epochs(positions)
    word = "node" if nodes == 1 else "nodes"
    sliced = f", tensor_parallel {parallel.tensor_parallel}" if parallel.tensor_parallel > 1 else ""
    return [
        f"processes   {gpus} = {nodes} {word} of {per_node}; {strategy}{sliced}",
        f"batch       {train.global_batch_tokens:,} tokens = {replicas} x micro-batch "
        f"{train.micro_batch_size} x {seq_len} x accumulation {accumulation}",
        f"memory      {memory_line}",
        f"tokenizer   {tokenizer.name}: {tokenizer.vocab_size:,} ids, "
        f"{config.model.vocab_size:,} rows in the model",
        f"data        {config.data.prepared or 'not prepared'}: {sum(data.loader.counts):,} "
        f"sequences of {seq_len}; {train.steps:,} steps read {positions:,}",
        f"schedule    {_schedule(config)}",
        f"validation  {_validation(config, data)}",
        "epochs      " + ", ".join(f"{name} {count:.2f}" for name, count in epochs.items()),
        f"output      {_output(config, data.loader.fingerprint())}",
    ]


def nodes_of(gpus: int, per_node: int = GPUS_PER_NODE) -> tuple[int, int]:
    """(nodes, GPUs on each). Raises ConfigError where nodes would not be filled."""
    if per_node < 1:
        raise ConfigError(f"gpus_per_node = {per_node}: must be at least 1")
    if gpus < 1 or (gpus > per_node and gpus % per_node):
        nearest = max(1, round(gpus / per_node) * per_node)
        raise ConfigError(
            f"gpus = {gpus}: must lie between 1 and {per_node}, or fill nodes of "
            f"{per_node}; the nearest is {nearest}"
        )
    return -(-gpus // per_node), min(gpus, per_node)


def _memory(config: RunConfig, gpus: int, gpu: str | None, strategy: str) -> str:
    """That the planner's peak and its reserve fit the card."""
    # Whose memory counts?
    if gpu is not None:
        if gpu not in GPUS:
            raise ConfigError(f"gpu = {gpu!r}: unknown; choose one of {', '.join(GPUS)}")
        name, available = gpu, GPUS[gpu].memory
    elif config.train.device != "cpu" and torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        name, available = card.name, float(card.total_memory)
    else:
        return f"not checked: no GPU here; name the run's with --gpu ({', '.join(GPUS)})"

    checkpointing = config.parallel.checkpointing
    needed = memory(config, gpus, strategy, checkpointing).total
    numbers = (
        f"{needed / 1e9:.1f} GB a rank, {RESERVE / 1e9:.0f} kept free, "
        f"of {available / 1e9:.1f} on {name}"
    )
    if config.parallel.tensor_parallel > 1:
        return f"without tensor parallelism, which the planner leaves out: {numbers}"
    if needed + RESERVE > available:
        raise ConfigError(
            f"train.micro_batch_size = {config.train.micro_batch_size}: {strategy} with "
            f"checkpointing {checkpointing} needs {numbers} (planned); lower it, or change "
            "parallel.checkpointing or strategy: slm2 plan compares them"
        )
    return f"{numbers} (planned)"


def _schedule(config: RunConfig) -> str:
    """The learning rate at its peak and at the last step, and the cooldown."""
    schedule, steps = config.schedule, config.train.steps
    last = learning_rate(steps - 1, schedule)
    line = f"{schedule.kind}: peak {schedule.peak_rate:g}, {last:.3g} at the last step"
    if schedule.cooldown_start is None or schedule.cooldown_steps is None:
        return f"{line}; no cooldown"
    end = schedule.cooldown_start + schedule.cooldown_steps
    return f"{line}; cooldown from step {schedule.cooldown_start:,} to {end:,}"


def _validation(config: RunConfig, data: TrainingData) -> str:
    """How much is scored how often, and what share of the run's computing that is."""
    if not data.held_out:
        return "none: data.validation_percent is 0"
    train, seq_len = config.train, config.data.seq_len
    sequences = [min(s.num_sequences(seq_len), MAX_SEQUENCES) for s in data.held_out.values()]
    times = -(-train.steps // train.validate_every)
    # A forward pass is a third of a training step.
    scored = times * sum(sequences) * seq_len / 3
    share = scored / (scored + train.steps * train.global_batch_tokens)
    return (
        f"{sum(sequences):,} sequences of {len(sequences)} languages, {times:,} times: "
        f"{share:.1%} of the run's computing"
    )


def _output(config: RunConfig, fingerprint: str) -> str:
    """Where the run begins; a checkpoint it goes on from is whole and its own."""
    run_dir = Path(config.train.output_dir)
    start = resume.find_start(config, fingerprint, World(torch.device("cpu")))
    if start is not None:
        return (
            f"{run_dir}: goes on from {start.folder}, after step {start.state.step:,} "
            f"of {config.train.steps:,}"
        )
    if config.train.init_from is not None:
        return f"{run_dir}: a new run, with the weights of {config.train.init_from}"
    return f"{run_dir}: a new run"
