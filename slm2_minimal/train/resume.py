"""Which checkpoint a run goes on from, and whether it may."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from slm2_minimal.config import CheckpointError
from slm2_minimal.distributed import checkpoint
from slm2_minimal.distributed.world import World

# What may change between two parts of a run: how it is spread (which changes results by
# rounding only), how often it logs, its length.
FREE = {
    "train": {
        "steps", "output_dir", "device", "micro_batch_size", "log_every", "validate_every", "save_every", "keep_checkpoints",
        "spike_sigmas", "profile_step", "wandb", "prompts", "sample_tokens",
    },
    "data": {"prepared", "verify", "workers"},
}  # fmt: skip


def newest(
    run: Path, world: World, *, set_aside: bool = False
) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint in the folder `run`, and its state; damaged ones are
    passed over with a warning.

    With `set_aside` those are given another name, so that they are not taken for one of
    the newest that are kept.

    Raises:
        CheckpointError: there are some, and every one is damaged.
    """
    found, damaged = (
        world.gather(checkpoint.steps(run))[0],
        [],
    )  # one rank's list: on a network file system others may see an older one
    for folder in reversed(found):
        try:
            state = checkpoint.read_state(folder, world)
        except CheckpointError as error:
            damaged.append(folder)
            if world.is_first:
                warnings.warn(f"{error}; trying the one before", stacklevel=2)
            continue
        if set_aside and world.is_first:
            for other in damaged:
                shutil.rmtree(run / f"damaged-{other.name}", ignore_errors=True)
                other.rename(run / f"damaged-{other.name}")
        return folder, state
    if found:
        raise CheckpointError(
            f"train.output_dir = {str(run)!r}: every checkpoint is damaged; remove the folder to"
            " start again"
        )
    return None


def check_same_run(folder: Path, state: dict[str, Any], config: dict[str, Any]) -> None:
    """Everything that changes what a run computes must be as it was. Raises
    CheckpointError with the first field that is not.
    """
    theirs, ours = (json.loads(json.dumps(config)) for config in (state["config"], config))
    for config in (theirs, ours):
        for table, free in FREE.items():
            config[table] = {key: value for key, value in config[table].items() if key not in free}
        for table in ("prepare", "parallel"):  # what the data holds is in its fingerprint
            config.pop(table, None)
    field, saved, here = checkpoint.first_difference(theirs, ours)
    if field:
        raise CheckpointError(
            f"{field} = {here!r}: the run in {str(folder.parent)!r} has {saved!r}; choose another"
            " --train.output_dir, or the same value"
        )


def check_same_data(folder: Path, state: dict[str, Any], fingerprint: str) -> None:
    """Raise CheckpointError where the data is not what the checkpoint was trained
    on.
    """
    if state["data_fingerprint"] != fingerprint:
        raise CheckpointError(
            f"data = {fingerprint}: not the data that {str(folder)!r} was trained on"
            f" ({state['data_fingerprint']}); use the same sources, weights, tokenizer, seq_len and"
            " seed"
        )
