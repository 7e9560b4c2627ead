"""Hugging Face's format in and out: config.json and safetensors, one file or shards
with an index.

Reading is strict about meaning and lenient about the rest: a foreign config.json may
carry any key, and only what would change the function we compute is refused. Nothing is
unpickled and no remote code runs.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slm2_minimal.config import CheckpointError, MissingExtraError, ModelConfig
from slm2_minimal.files import flush, read_json, whole_file, write_json

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
NORM = r"(model\.norm|model\.layers\.\d+\.(input|post_attention)_layernorm)\."
TENSORS = re.compile(  # every tensor of the format; all norms have biases in it
    rf"model\.embed_tokens\.weight|lm_head\.weight|{NORM}(weight|bias)"
    r"|model\.layers\.\d+\.self_attn\.([qkvo]_proj\.weight|[qkv]_proj\.bias)"
    r"|model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight"
)


def resolve(path_or_repo_id: str | Path) -> Path:
    """A local folder as it is; `owner/name` is fetched from the Hub, without code."""
    name, folder = str(path_or_repo_id), Path(path_or_repo_id)
    if folder.is_dir():
        return folder
    if isinstance(path_or_repo_id, Path) or name.count("/") != 1 or folder.is_absolute():
        raise CheckpointError(
            f"path = {name!r}: no such folder; give one that holds {CONFIG}, or a Hub id owner/name"
        )

    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hf", f"loading {name} from the Hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:  # what all of the Hub's errors are
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"path = {name!r}: neither a local folder nor to be had from the Hub ({reason}); check"
            " the name, the network, and `hf auth login` for gated repositories"
        ) from None


def read_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a folder's config.json. Rotary fields are taken from
    `rope_parameters` (new) or the top level (old).
    """
    path = folder / CONFIG
    raw = _read_object(path)
    rope = raw.get("rope_parameters") or {}
    for name, ours in FIXED.items():
        if raw.get(name, ours) != ours:
            raise CheckpointError(
                f"{name} = {raw[name]!r} in {path}: this model computes {ours!r} only; use another"
                " checkpoint"
            )
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"rope_parameters = {rope!r} in {path}: only unscaled rotary is computed here"
        )

    names = {field.name for field in dataclasses.fields(ModelConfig)} - FIXED.keys()
    values = {name: rope.get(name, raw.get(name)) for name in names}
    return ModelConfig(**{name: value for name, value in values.items() if value is not None})


def write_config(config: ModelConfig) -> dict[str, Any]:
    """What `transformers` reads. The two norm-bias flags are left out: `write` stores
    zeros for missing biases, the same function.
    """
    fields = dataclasses.asdict(config)
    del fields["norm_bias"], fields["final_norm_bias"]
    rope = {name: fields[name] for name in ("rope_theta", "partial_rotary_factor")}
    return {
        "architectures": ["StableLmForCausalLM"],
        **FIXED,
        **fields,
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
    files = [WEIGHTS]
    if (folder / INDEX).exists():
        files = sorted(set(_read_object(folder / INDEX)["weight_map"].values()))
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

    # every key and every shape
    if tied and "lm_head.weight" not in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(expected.keys() | shapes.keys()):
        if shapes.get(key) != expected.get(key):
            raise CheckpointError(
                f"{key}: shape {shapes.get(key, 'missing')} in {folder}, but {CONFIG} asks for"
                f" {expected.get(key, 'no such tensor')}; use weights and config of one model"
            )
    return {key: weights[key].to(dtype) for key in expected}


def write(
    path: str | Path, config: ModelConfig, state: Mapping[str, Tensor], max_shard_bytes: int
) -> None:
    """Write config and weights into the folder `path`. Each file appears whole or not
    at all; stale weight files are removed last.

    Raises:
        CheckpointError: the state holds other tensors than the format has.
    """
    unknown = [key for key in state if not TENSORS.fullmatch(key)]
    if unknown:
        raise CheckpointError(
            f"{unknown[0]}: no tensor of Hugging Face's format; where transformers has it, say so"
            " in TENSORS and write_config of model/hub.py"
        )
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    for key in state:
        if re.match(NORM, key):
            tensors.setdefault(key.replace("weight", "bias"), torch.zeros_like(tensors[key]))
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]

    # the weights, in one file or in shards with an index
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_bytes)
    for name, shard in shards.items():
        with whole_file(folder / name) as file:
            # save_file puts its own file under this name, readable by its owner only
            save_file(shard, file.name, metadata={"format": "pt"})
            os.chmod(file.name, os.fstat(file.fileno()).st_mode)
            flush(Path(file.name))
    written = set(shards)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in shards.items() for key in shard}
        total = sum(value.nbytes for value in tensors.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        written.add(INDEX)

    write_json(folder / CONFIG, write_config(config))
    for file_path in folder.glob("model*.safetensors*"):
        if file_path.name not in written:
            file_path.unlink()


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file by its name: greedily, in order; a tensor larger than
    `max_bytes` has a shard of its own.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if shards[-1] and size + value.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    if len(shards) == 1:
        return {WEIGHTS: tensors}
    names = (f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards)))
    return dict(zip(names, shards, strict=True))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not valid JSON"
        raise CheckpointError(
            f"{path}: {reason}; a model folder holds {CONFIG} and {WEIGHTS}, download it again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object; download or save it again")
    return content
