"""Checkpoints that are whole or absent: model, optimizer and a little state, in safe formats.

A checkpoint is a folder `step-00000300` with Hugging Face's config.json and model.safetensors (so `transformers`
opens it as it is), optimizer.safetensors, and state.json, which holds the step, the data position, the run's
configuration and the digests of the other files. It is written under another name and renamed when complete; a crash
leaves the ones before untouched.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slm2_minimal.config import CheckpointError
from slm2_minimal.model import hub
from slm2_minimal.model.transformer import StableLM2

STATE, OPTIMIZER, BEST = "state.json", "optimizer.safetensors", "best.json"


def save(run: Path, step: int, model: StableLM2, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` updates into the run's folder and return its path."""
    final, part = run / f"step-{step:08d}", run / f".step-{step:08d}.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    save_file(_optimizer_tensors(model, optimizer), part / OPTIMIZER)
    digests = {file.name: _sha256(file) for file in sorted(part.iterdir())}
    (part / STATE).write_text(json.dumps({"step": step, **state, "sha256": digests}, indent=2) + "\n", encoding="utf-8")
    for file in part.iterdir():
        _flush(file)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    _flush(run)
    return final


def steps(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in run.glob("step-*") if (path / STATE).exists())


def prune(run: Path, keep: int, always: Iterable[Path] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those in `always`."""
    spared = {path.name for path in always}
    for old in steps(run)[:-keep]:
        if old.name not in spared:
            shutil.rmtree(old)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint, after every file's digest has been checked.

    Raises:
        CheckpointError: no checkpoint there, or a file is missing or altered.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        digests = dict(state["sha256"])
    except OSError as error:
        raise CheckpointError(f"checkpoint = {str(folder)!r}: {error.strerror}; give a folder that holds {STATE}") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"checkpoint = {str(folder)!r}: {STATE} is damaged; remove this folder to go on from the one before"
        ) from None
    for name, digest in digests.items():
        if not (folder / name).exists() or _sha256(folder / name) != digest:
            raise CheckpointError(
                f"checkpoint = {str(folder)!r}: {name} is missing or altered; remove this folder to go on from the one before"
            )
    return state


def load(folder: Path, model: StableLM2, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and optimizer state back in place and return the state.

    Raises:
        CheckpointError: as `read_state`, or the checkpoint is of another architecture.
    """
    state = read_state(folder)
    device = next(model.parameters()).device
    saved = hub.read_config(folder)
    if saved != model.config.replace(norm_bias=True, final_norm_bias=True):
        field, theirs, ours = first_difference(vars(saved), vars(model.config))
        raise CheckpointError(f"model.{field} = {ours!r}: the checkpoint {str(folder)!r} has {theirs!r}; use the same model")
    model.load_state_dict(hub.read_weights(folder, model, torch.float32, tied=saved.tie_word_embeddings))
    try:
        tensors = load_file(folder / OPTIMIZER, device=str(device))
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"checkpoint = {str(folder)!r}: {OPTIMIZER} is missing or damaged ({error})") from None
    _restore_optimizer(model, optimizer, tensors)
    return state


def write_best(run: Path, best: dict[str, Any]) -> None:
    """Note which step had the lowest mean validation loss."""
    part = run / f".{BEST}.part"
    part.write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")
    os.replace(part, run / BEST)


def find_model(path: str) -> tuple[str | Path, str | None]:
    """(what `StableLM2.from_pretrained` takes, the tokenizer it was trained with if known) for a run's folder, a
    checkpoint, or anything else.

    Of a run, the best checkpoint is taken, or the newest where nothing was validated.
    """
    folder = Path(path)
    if not (folder / STATE).exists() and (found := steps(folder)):
        folder = found[-1]
        if (folder.parent / BEST).exists():
            folder = folder.parent / f"step-{json.loads((folder.parent / BEST).read_text())['step']:08d}"
    if not (folder / STATE).exists():
        return path, None
    return folder, read_state(folder)["config"]["data"]["tokenizer"]


def first_difference(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any]:
    """(dotted field, their value, our value) of the first place where two nested dictionaries differ; ("", None, None) if nowhere."""
    for key in ours | theirs:
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            field, a, b = first_difference(a, b, f"{prefix}{key}.")
            if field:
                return field, a, b
        elif a != b:
            return f"{prefix}{key}", a, b
    return "", None, None


def _optimizer_tensors(model: StableLM2, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by parameter name: `name/exp_avg`, `name/exp_avg_sq`, `name/step`."""
    named: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{named[parameter]}/{key}": value.detach().contiguous()
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def _restore_optimizer(model: StableLM2, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        # Cloned, because a slice of a file may lie unaligned in memory, and products and sums then round differently.
        state = {key.rpartition("/")[2]: value.clone() for key, value in tensors.items() if key.rpartition("/")[0] == name}
        if state:
            optimizer.state[parameter] = state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold what was written, also across a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
