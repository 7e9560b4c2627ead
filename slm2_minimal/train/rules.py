"""What a run must be before it starts: `slm2 train` and its `--check` ask here, both.

Rules that one table of the configuration can answer are in `config/`; these need the
number of processes, the tokenizer, the text, or the disk.
"""

import logging
import os
from pathlib import Path

import torch

from slm2_minimal.config import SHARDED, ConfigError, RunConfig
from slm2_minimal.data.training_data import TrainingData, open_training_data
from slm2_minimal.distributed.device import require_memory
from slm2_minimal.distributed.parallel import resolve_strategy
from slm2_minimal.text.tokenizer import Tokenizer, load_tokenizer
from slm2_minimal.train.schedule import learning_rate

logger = logging.getLogger(__name__)


def check_run(
    config: RunConfig,
    processes: int,
    per_node: int,
    *,
    launched: bool,
    device: torch.device | None = None,
) -> str:
    """Refuse what cannot run on so many processes, `per_node` of them on each machine.

    `device` is where this one runs; None: on another machine. Returns the strategy,
    `auto` decided. Raises ConfigError for the first thing that cannot be.
    """
    strategy = resolve_strategy(config, processes, launched=launched)
    _check_groups(config, strategy, processes, per_node)
    _check_batch(config, processes)
    _check_prompts(config)
    _check_profile(config)
    _check_output_dir(config)
    if device is not None:
        _check_memory(config, strategy, processes, per_node, device)
    return strategy


def open_inputs(config: RunConfig) -> tuple[Tokenizer, TrainingData]:
    """The tokenizer and the text of a run that `check_run` accepts.

    Raises ConfigError where the tokenizer has more ids than the model, DataError for
    text that is missing or damaged, or too little for the whole run.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}: the tokenizer "
            f"{config.data.tokenizer!r} has {tokenizer.vocab_size} ids; use at least as many"
        )
    data = open_training_data(config.data, tokenizer)
    data.loader.mixture.check_epochs(sequences_of(config))
    return tokenizer, data


def sequences_of(config: RunConfig) -> int:
    """How many sequences all steps of a run read."""
    return config.train.steps * config.train.global_batch_tokens // config.data.seq_len


def _check_groups(config: RunConfig, strategy: str, processes: int, per_node: int) -> None:
    """That the ranks which share a shard or a matrix make whole groups."""
    parallel = config.parallel
    if strategy == "hybrid" and processes % (parallel.shard_ranks or per_node):
        raise ConfigError(
            f"parallel.shard_ranks = {parallel.shard_ranks}: must divide the number of "
            f"processes, {processes}"
        )
    if per_node % parallel.tensor_parallel:
        raise ConfigError(
            f"parallel.tensor_parallel = {parallel.tensor_parallel}: must divide the GPUs "
            f"of a node, {per_node}"
        )


def _check_batch(config: RunConfig, processes: int) -> None:
    """That every rank has as many micro-batches of the global batch as the others."""
    train = config.train
    replicas = processes // config.parallel.tensor_parallel
    at_once = replicas * train.micro_batch_size * config.data.seq_len
    if train.global_batch_tokens % at_once:
        nearest = max(1, round(train.global_batch_tokens / at_once)) * at_once
        raise ConfigError(
            f"train.global_batch_tokens = {train.global_batch_tokens}: must be a multiple of "
            f"{at_once} = {replicas} x micro_batch_size x seq_len on {processes} GPUs; "
            f"the nearest is {nearest}"
        )


def _check_prompts(config: RunConfig) -> None:
    """That samples can be drawn: prompts have words, and room in the context."""
    train, context = config.train, config.model.max_position_embeddings
    if not all(train.prompts):
        raise ConfigError(
            "train.prompts: one of them is empty; give it a word to go on from, or leave it out"
        )
    if train.prompts and train.sample_tokens >= context:
        raise ConfigError(
            f"train.sample_tokens = {train.sample_tokens}: must leave room for a prompt in the "
            f"context, model.max_position_embeddings = {context}"
        )


def _check_profile(config: RunConfig) -> None:
    """That the step to trace comes."""
    train = config.train
    if train.profile_step is not None and train.profile_step >= train.steps:
        raise ConfigError(
            f"train.profile_step = {train.profile_step}: the run ends after step "
            f"{train.steps}; name one that it makes"
        )


def _check_memory(
    config: RunConfig, strategy: str, processes: int, per_node: int, device: torch.device
) -> None:
    """That weights and AdamW's two moments, in fp32, fit into the whole device."""
    sharers = processes if strategy in SHARDED else 1
    if strategy == "hybrid":
        sharers = config.parallel.shard_ranks or per_node
    holders = 1 if device.type == "cuda" else per_node  # processes that share its memory
    require_memory(
        12 * config.model.num_parameters() * holders / sharers,
        device,
        f"model.hidden_size = {config.model.hidden_size}",
        "choose a smaller model, or share it among more GPUs: slm2 plan compares them",
    )


def warn_of_an_early_end(config: RunConfig) -> None:
    """Say where the run ends before its schedule does, at a rate that is no end's."""
    steps, end = config.train.steps, config.schedule.end
    if end is not None and steps < end:
        last = learning_rate(steps - 1, config.schedule)
        logger.warning(
            f"train.steps = {steps}: the run ends before its schedule, at a rate of {last:.3g}; the"
            f" schedule ends at step {end}: give its lengths as shares of train.steps to follow it"
        )


def _check_output_dir(config: RunConfig) -> None:
    """That the run's folder can be made, or written to where it is there."""
    folder = Path(config.train.output_dir).absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"train.output_dir = {config.train.output_dir!r}: is not UTF-8, which the files of "
            "a run are; name another folder"
        ) from None
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(
            f"train.output_dir = {config.train.output_dir!r}: {existing} cannot be written; "
            "name another folder"
        )
