"""Where a run begins: at a checkpoint of its own, of another run, or at step 0."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm2_minimal.config import CheckpointError, ConfigError, RunConfig
from slm2_minimal.config.difference import first_difference
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


@dataclass(frozen=True)
class Start:
    """A checkpoint to begin at, and whether it is one of this run."""

    folder: Path
    state: RunState
    is_own: bool


def find_start(
    config: RunConfig, data_fingerprint: str, world: World, *, set_aside: bool = False
) -> Start | None:
    """The newest good checkpoint in `output_dir`, else `train.start_from`, else None.

    With `set_aside`, damaged checkpoints are renamed, and do not count among the
    newest that are kept.

    Raises:
        CheckpointError: none is whole, or it is of another run, model, or data.
    """
    run_dir = Path(config.train.output_dir)
    own = newest(run_dir, world, set_aside=set_aside)
    if own is not None:
        folder, state = own
        check_same_run(folder, state, config)
    elif config.train.start_from is not None:
        folder = Path(config.train.start_from)
        state = read_run_state(folder, world)
        check_same_model(folder, state, config)
        _warn_of_another_schedule(folder, state, config)
        if state.step >= config.train.steps:
            raise ConfigError(
                f"train.steps = {config.train.steps}: {str(folder)!r} has made {state.step} "
                "already; the steps of the run before it count: give more"
            )
    else:
        return None
    check_same_data(folder, state, data_fingerprint)
    return Start(folder, state, is_own=own is not None)


def read_run_state(folder: Path, world: World) -> RunState:
    """The state in a checkpoint. Raises CheckpointError: missing or damaged."""
    return RunState.from_dict(checkpoint.read_state(folder, world), f"checkpoint = {str(folder)!r}")


def newest(run_dir: Path, world: World, *, set_aside: bool = False) -> tuple[Path, RunState] | None:
    """The newest whole checkpoint of a run and its state; damaged ones are passed over.

    Raises:
        CheckpointError: there are some, and every one is damaged.
    """
    # One rank's list: on a network file system others may see an older one.
    folders = world.gather(checkpoint.steps(run_dir))[0]
    damaged = []
    for folder in reversed(folders):
        try:
            state = read_run_state(folder, world)
        except checkpoint.DamagedCheckpoint as error:
            damaged.append(folder)
            logger.warning("%s; trying the one before", error)
            continue
        if set_aside and world.is_first:
            _set_aside(damaged)
        return folder, state
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

    Raises:
        CheckpointError: of another architecture, or trained with another tokenizer.
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


def _set_aside(folders: list[Path]) -> None:
    for folder in folders:
        target = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)


def check_same_run(folder: Path, state: RunState, config: RunConfig) -> None:
    """Everything that changes what a run computes must be as it was.

    Raises:
        CheckpointError: names the first field that is not.
    """
    saved = _what_decides(checkpoint.saved_config(folder, vars(state)))
    ours = _what_decides(config)
    field, theirs, here = first_difference(saved, ours)
    if field:
        raise CheckpointError(
            f"{field} = {here!r}: the run in {str(folder.parent)!r} has {theirs!r}; "
            "choose another --train.output_dir, or the same value"
        )


def check_same_model(folder: Path, state: RunState, config: RunConfig) -> None:
    """Raise CheckpointError where the checkpoint is of another architecture."""
    saved = checkpoint.saved_config(folder, vars(state)).to_dict()["model"]
    field, theirs, here = first_difference(saved, config.to_dict()["model"])
    if field:
        raise CheckpointError(
            f"model.{field} = {here!r}: the checkpoint {str(folder)!r} has {theirs!r}; "
            "use the same model"
        )


def check_same_data(folder: Path, state: RunState, fingerprint: str) -> None:
    """Raise CheckpointError where the checkpoint was trained on other data."""
    if state.data_fingerprint != fingerprint:
        raise CheckpointError(
            f"data = {fingerprint}: not the data that {str(folder)!r} was trained on "
            f"({state.data_fingerprint}); use the same sources, weights, tokenizer, seq_len "
            "and seed"
        )


def _warn_of_another_schedule(folder: Path, state: RunState, config: RunConfig) -> None:
    """Another cooldown is a branch's purpose; another shape makes the rate jump."""
    cooldown = {"cooldown_start": None, "cooldown_steps": None}
    saved = checkpoint.saved_config(folder, vars(state)).schedule
    theirs = {**vars(saved), **cooldown}
    ours = {**vars(config.schedule), **cooldown}
    field, old, new = first_difference(theirs, ours)
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
