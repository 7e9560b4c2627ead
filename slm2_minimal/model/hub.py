"""Hugging Face's format in and out: config.json and safetensors, one file or shards
with an index.

Reading is strict about meaning and lenient about the rest: a foreign config.json may
carry any key, and only what would change the function we compute is refused. Nothing is
unpickled and no remote code runs.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slm2_minimal.config import CheckpointError, MissingExtraError, ModelConfig

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# What StableLmForCausalLM can do and this model does not: any other value is another
# function.
FIXED: dict[str, Any] = {
    "model_type": "stablelm",
    "hidden_act": "silu",
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "rope_scaling": None,
}


def resolve(path_or_repo_id: str | Path) -> Path:
    """A local folder as it is; anything that looks like `owner/name` is fetched from
    the Hub, weights and config only.
    """
    folder = Path(path_or_repo_id)
    if folder.is_dir():
        return folder
    if (
        isinstance(path_or_repo_id, Path)
        or str(path_or_repo_id).count("/") != 1
        or folder.is_absolute()
    ):
        raise CheckpointError(
            f"path = {str(path_or_repo_id)!r}: no such folder; give one that holds {CONFIG}, or a"
            " Hub id owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise MissingExtraError(
            "huggingface_hub", "hf", f"loading {path_or_repo_id} from the Hub"
        ) from None
    try:
        return Path(
            snapshot_download(str(path_or_repo_id), allow_patterns=["*.safetensors", "*.json"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"path = {str(path_or_repo_id)!r}: neither a local folder nor to be had from the Hub"
            f" ({reason}); check the name, the network, and `hf auth login` for gated repositories"
        ) from None


def read_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a folder's config.json. Rotary fields are taken from
    `rope_parameters` (new) or the top level (old).
    """
    raw = _read_json(folder / CONFIG)
    rope = dict(raw.get("rope_parameters") or {})
    for name, ours in FIXED.items():
        if raw.get(name, ours) != ours:
            raise CheckpointError(
                f"{name} = {raw[name]!r} in {folder / CONFIG}: this model computes {ours!r} only;"
                " use another checkpoint"
            )
    if rope.pop("rope_type", "default") != "default":
        raise CheckpointError(
            f"rope_parameters = {raw['rope_parameters']!r} in {folder / CONFIG}: only unscaled"
            " rotary is computed here"
        )
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    values = {name: rope.get(name, raw.get(name)) for name in names}
    return ModelConfig(
        **{name: value for name, value in values.items() if value is not None and name not in FIXED}
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """What `transformers` reads. The two norm-bias flags are left out: `write` stores
    zeros for missing biases, the same function.
    """
    fields = dataclasses.asdict(config)
    rope = {"rope_theta": config.rope_theta, "partial_rotary_factor": config.partial_rotary_factor}
    ours = ("norm_bias", "final_norm_bias")
    return {
        "architectures": ["StableLmForCausalLM"],
        **FIXED,
        **{name: value for name, value in fields.items() if name not in ours},
        "rope_parameters": {"rope_type": "default", **rope},
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def read_weights(
    folder: Path, model: nn.Module, dtype: torch.dtype, *, tied: bool = False
) -> dict[str, Tensor]:
    """The state dict of a folder in `dtype`, every key and shape held against `model`'s
    (which may lie on the meta device).
    """
    if (folder / INDEX).exists():
        files = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
    else:
        files = [WEIGHTS]
    weights: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(
                f"{INDEX} names {name!r}: shards must lie beside it; use a clean download"
            )
        try:
            weights |= load_file(folder / name)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{folder / name}: missing or damaged ({error}); download or save it again"
            ) from None
    expected = model.state_dict()
    if "lm_head.weight" not in weights and tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    missing, extra = (
        sorted(expected.keys() - weights.keys()),
        sorted(weights.keys() - expected.keys()),
    )
    if missing or extra:
        raise CheckpointError(
            f"{folder}: weights do not fit {CONFIG}: missing {missing[:3] or 'none'}, unknown"
            f" {extra[:3] or 'none'}"
        )
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            raise CheckpointError(
                f"{key} in {folder}: shape {tuple(weights[key].shape)}, but {CONFIG} asks for"
                f" {tuple(value.shape)}"
            )
    return {key: weights[key].to(dtype) for key in expected}


def write(
    path: str | Path, config: ModelConfig, state: Mapping[str, Tensor], max_shard_bytes: int
) -> None:
    """Write config and weights into the folder `path`. Each file appears whole or not
    at all; stale weight files are removed last.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    for key in [key for key in tensors if key.endswith("norm.weight")]:
        tensors.setdefault(key.replace("weight", "bias"), torch.zeros_like(tensors[key]))
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    shards = _shards(tensors, max_shard_bytes)
    names = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / f"{name}.part", metadata={"format": "pt"})
        os.replace(folder / f"{name}.part", folder / name)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(value.nbytes for value in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / CONFIG, write_config(config))
    for stale in folder.glob("model*.safetensors*"):
        if stale.name not in names and not (stale.name == INDEX and len(shards) > 1):
            stale.unlink()


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Greedily, in order; a tensor larger than `max_bytes` has a shard of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if shards[-1] and size + value.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; a model folder holds {CONFIG} and {WEIGHTS}"
        ) from None
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not valid JSON ({error}); download or save it again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object; download or save it again")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
