"""Where a run begins: at a checkpoint of its own, of another run, or at step 0."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from slm2_minimal.config import CheckpointError, ConfigError, RunConfig, ScheduleConfig
from slm2_minimal.config.run import first_difference
from slm2_minimal.distributed import checkpoint, pretrained
from slm2_minimal.distributed.world import World
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import Tokenizer, load_tokenizer
from slm2_minimal.train.state import RunState

logger = logging.getLogger(__name__)

# What may change between two parts of a run: how it is spread over processes (which
# changes results by rounding only), how often it logs, and its length.
MAY_CHANGE = {
    "train": (
        "steps", "output_dir", "device", "micro_batch_size", "log_every", "validate_every",
        "save_every", "keep_checkpoints", "spike_sigmas", "profile_step", "wandb", "prompts",
        "sample_tokens", "start_from", "init_from",
    ),
    "data": ("prepared", "verify", "workers"),
}  # fmt: skip
SOURCE_MAY_CHANGE = ("max_epochs",)  # a run that needs more text may be allowed it


class Start(NamedTuple):
    """A checkpoint to begin at, and whether it is one of this run."""

    folder: Path
    state: RunState
    is_own: bool


def find_start(
    config: RunConfig, data_fingerprint: str, world: World, *, set_aside: bool = False
) -> Start | None:
    """The newest good checkpoint in `output_dir`, else `train.start_from`, else None.

    With `set_aside`, damaged checkpoints are renamed, and do not count among the newest
    that are kept. Raises CheckpointError where none is whole, or it is of another run,
    model, or data.
    """
    train = config.train
    own = newest(Path(train.output_dir), world, set_aside=set_aside)
    if own is not None:
        folder, state = own
    elif train.start_from is not None:
        folder, state = read_run_state(Path(train.start_from), world)
    else:
        return None

    saved = checkpoint.saved_config(folder, vars(state))
    if own is not None:
        check_same_run(folder, saved, config)
    else:
        checkpoint.check_architecture(folder, saved.model, config.model)
        _warn_of_another_schedule(folder, saved.schedule, config.schedule)
        if state.step >= train.steps:
            raise ConfigError(
                f"train.steps = {train.steps}: {str(folder)!r} has made {state.step} already; the "
                "steps of the run before it count: give more"
            )
    if state.data_fingerprint != data_fingerprint:
        raise CheckpointError(
            f"data = {data_fingerprint}: not the data that {str(folder)!r} was trained on "
            f"({state.data_fingerprint}); use the same sources, weights, tokenizer, seq_len "
            "and seed"
        )
    return Start(folder, state, is_own=own is not None)


def read_run_state(folder: Path, world: World) -> tuple[Path, RunState]:
    """A checkpoint and its state. Raises CheckpointError: missing or damaged."""
    content = checkpoint.read_state(folder, world)
    return folder, RunState.from_dict(content, f"checkpoint = {str(folder)!r}")


def newest(run_dir: Path, world: World, *, set_aside: bool = False) -> tuple[Path, RunState] | None:
    """The newest whole checkpoint of a run and its state; damaged ones are passed over.

    Raises CheckpointError where there are some, and every one is damaged.
    """
    # One rank's list: on a network file system others may see an older one.
    folders = world.gather(checkpoint.steps(run_dir))[0]
    damaged = []
    for folder in reversed(folders):
        try:
            found = read_run_state(folder, world)
        except checkpoint.DamagedCheckpoint as error:
            damaged.append(folder)
            logger.warning("%s; trying the one before", error)
            continue

        if set_aside and world.is_first:
            for other in damaged:
                target = other.with_name(f"damaged-{other.name}")
                shutil.rmtree(target, ignore_errors=True)
                other.rename(target)
        return found
    if damaged:
        raise CheckpointError(
            f"train.output_dir = {str(run_dir)!r}: every checkpoint is damaged; "
            "remove the folder to start again"
        )
    return None


def load_initial_weights(
    config: RunConfig, model: StableLM2, tokenizer: Tokenizer, world: World
) -> None:
    """Fill `model` from `train.init_from`: weights alone, the run begins at step 0.

    Raises CheckpointError for those of another architecture or tokenizer.
    """
    source = config.train.init_from
    assert source is not None
    name = pretrained.load_weights(source, model, world)
    if name is None:
        logger.info("weights of %s; their tokenizer is not known there", source)
        return
    if load_tokenizer(name).fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"data.tokenizer = {config.data.tokenizer!r}: {source!r} was trained with {name!r}; "
            "its ids mean other tokens: use the same"
        )
    logger.info("weights of %s", source)


def check_same_run(folder: Path, saved: RunConfig, config: RunConfig) -> None:
    """Raise CheckpointError where what a run computes is not decided as it was."""
    field, theirs, ours = first_difference(_what_decides(saved), _what_decides(config))
    if field:
        raise CheckpointError(
            f"{field} = {ours!r}: the run in {str(folder.parent)!r} has {theirs!r}; "
            "choose another --train.output_dir, or the same value"
        )


def _warn_of_another_schedule(folder: Path, saved: ScheduleConfig, ours: ScheduleConfig) -> None:
    """Another cooldown is a branch's purpose; another shape makes the rate jump."""
    cooldown = {"cooldown_start": None, "cooldown_steps": None}
    field, old, new = first_difference(vars(saved) | cooldown, vars(ours) | cooldown)
    if field:
        logger.warning(
            "schedule.%s = %r: %s was trained with %r, so the learning rate jumps there; "
            "give the same to go on smoothly", field, new, folder, old,
        )  # fmt: skip


def _what_decides(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON has it, without what may change."""
    tables = json.loads(json.dumps(config.to_dict()))
    # What the prepared text holds is in the data's fingerprint.
    del tables["prepare"], tables["parallel"]
    for table, fields in MAY_CHANGE.items():
        for field in fields:
            tables[table].pop(field, None)
    for source in tables["data"]["sources"].values():
        for field in SOURCE_MAY_CHANGE:
            source.pop(field, None)
    return tables
