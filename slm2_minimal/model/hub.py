"""Hugging Face's format in and out: config.json and safetensors, one file or shards
with an index.

Reading is strict about meaning and lenient about the rest: a foreign config.json may
carry any key, and only what would change the function we compute is refused. Nothing is
unpickled and no remote code runs.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pydantic
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slm2_minimal.config import CheckpointError, ConfigError, MissingExtraError, ModelConfig
from slm2_minimal.config.errors import shown
from slm2_minimal.files import flush, read_json, whole_file, write_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
# What StableLmForCausalLM can do and this model does not: any other value is another
# function.
FIXED: dict[str, Any] = {
    "model_type": "stablelm",
    "hidden_act": "silu",
    "qk_layernorm": False,
    "use_parallel_residual": False,
}
# What a key means that config.json leaves out, where our own default is another.
ABSENT: dict[str, Any] = {
    "vocab_size": 50_304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "use_qkv_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
NORM = r"(model\.norm|model\.layers\.\d+\.(input|post_attention)_layernorm)\."
TENSORS = re.compile(  # every tensor of the format; all norms have biases in it
    rf"model\.embed_tokens\.weight|lm_head\.weight|{NORM}(weight|bias)"
    r"|model\.layers\.\d+\.self_attn\.([qkvo]_proj\.weight|[qkv]_proj\.bias)"
    r"|model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight"
    r"|(lm_head|.*_proj)\.(codes|scale|offset)"  # of quantised layers
)
# What is fetched from the Hub: weights, configuration, tokenizer; no code.
FETCHED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken"]
Checked = TypeVar("Checked")
UNUSED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # of old files


@pydantic.dataclasses.dataclass
class Index:
    """What model.safetensors.index.json holds: each tensor's file."""

    weight_map: dict[str, str]


@pydantic.dataclasses.dataclass
class RotaryTables:
    """The two places of config.json that may scale the rotation."""

    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None


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
        return Path(snapshot_download(name, allow_patterns=FETCHED))
    except (OSError, ValueError) as error:  # what all of the Hub's errors are
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"path = {name!r}: neither a local folder nor to be had from the Hub ({reason}); check"
            " the name, the network, and `hf auth login` for gated repositories"
        ) from None


def read_quantisation(folder: Path) -> Any:
    """What a folder's config.json says about integer weights; None: there are none."""
    return _read_object(folder / CONFIG).get("quantization_config")


def read_config(folder: Path, *, quantised: bool = False) -> ModelConfig:
    """The ModelConfig of a folder's config.json. Rotary fields are taken from
    `rope_parameters` (new) or the top level (old). Integer weights are refused unless
    the caller reads them.
    """
    path = folder / CONFIG
    raw = _read_object(path)
    for name, ours in FIXED.items():
        _require(name, raw.get(name), ours, path)
    if not quantised:
        _require("quantization_config", raw.get("quantization_config"), None, path)
    rope: dict[str, Any] = {}
    for name, table in vars(_checked(RotaryTables, raw, path)).items():
        rope |= table or {}
        for key in ("rope_type", "type"):  # new and old
            _require(f"{name}.{key}", rope.get(key), "default", path)

    # null means what a missing key means, but for the ids, where it means none
    names = {field.name for field in dataclasses.fields(ModelConfig)} - FIXED.keys()
    values = {name: rope.get(name, raw.get(name)) for name in names}
    values = ABSENT | {name: value for name, value in values.items() if value is not None}
    for name in ("bos_token_id", "eos_token_id"):
        if name in raw:
            ids = raw[name] if isinstance(raw[name], list) else [raw[name]]
            values[name] = next(iter(ids), None)
    try:
        config = ModelConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _require("head_dim", raw.get("head_dim"), config.head_dim, path)
    return config


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
    folder: Path, model: nn.Module, dtype: torch.dtype | None, *, tied: bool = False
) -> dict[str, Tensor]:
    """The state dict of a folder in `dtype`, every key and shape held against `model`'s
    (which may lie on the meta device). What the model has in another format than fp32,
    as codes and their scales, keeps it.

    None: as the embedding is stored, if that is in 16 bits, else in fp32. What needs no
    conversion is mapped: no second copy is made, and its pages go when the tensor does.
    """
    stored = {key: each for key, each in _stored(folder).items() if not UNUSED.fullmatch(key)}

    # every key and every shape; of tied tables one is stored, under either name
    names = {key: key for key in stored}
    for name, other in ((HEAD, TABLE), (TABLE, HEAD)):
        if tied and other in stored:
            names.setdefault(name, other)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    shapes = {key: stored[name].shape for key, name in names.items()}
    for key in sorted(expected.keys() | shapes.keys()):
        if shapes.get(key) != expected.get(key):
            raise CheckpointError(
                f"{key}: shape {shapes.get(key, 'missing')} in {folder}, but {CONFIG} asks for"
                f" {expected.get(key, 'no such tensor')}; use weights and config of one model"
            )

    # one tensor after the other
    if dtype is None:
        kept = _read(stored, names[TABLE]).dtype
        dtype = kept if kept in (torch.bfloat16, torch.float16) else torch.float32
    weights: dict[str, Tensor] = {}
    for key, ours in model.state_dict().items():
        value, kind = _read(stored, names[key]), ours.dtype
        if kind.is_floating_point:
            weights[key] = _finite(key, value, folder).to(dtype if kind == torch.float32 else kind)
        elif value.dtype != kind:
            raise CheckpointError(
                f"{key}: holds {value.dtype} in {folder}, but {CONFIG} asks for {kind}; use weights"
                " and config of one model"
            )
        else:
            weights[key] = value
    return weights


def stored_names(folder: Path) -> set[str]:
    """The names of all tensors in a folder, without reading them."""
    return set(_stored(folder))


def write(
    path: str | Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    max_shard_bytes: int,
    quantisation: dict[str, Any] | None = None,
) -> None:
    """Write config and weights into the folder `path`. Each file appears whole or not
    at all; stale weight files are removed last. `quantisation` is said in config.json.

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
        tensors.pop(HEAD, None)  # a quantised head has codes of its own

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

    dtype = str(tensors[TABLE].dtype).removeprefix("torch.")
    content = {**write_config(config), "dtype": dtype}
    if quantisation is not None:
        content["quantization_config"] = quantisation
    write_json(folder / CONFIG, content)
    for file_path in folder.glob("model*.safetensors*"):
        if file_path.name not in written:
            file_path.unlink()


def _weight_files(folder: Path) -> list[Path]:
    """The one file of a folder, or those that its index names."""
    if not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    index = _checked(Index, _read_object(folder / INDEX), folder / INDEX)
    names = sorted(set(index.weight_map.values()))
    for name in names:
        if Path(name).name != name or "\0" in name:
            raise CheckpointError(
                f"{INDEX} names {name!r}: shards must lie beside it; use a clean download"
            )
    return [folder / name for name in names]


class _Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    shape: tuple[int, ...]


def _stored(folder: Path) -> dict[str, _Stored]:
    """All tensors of a folder by name, from the heads of its files."""
    stored = {}
    for file in _weight_files(folder):
        with _whole(file), safetensors.safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no dictionary
                stored[name] = _Stored(file, tuple(tensors.get_slice(name).get_shape()))
    return stored


def _read(stored: Mapping[str, _Stored], name: str) -> Tensor:
    """One tensor, mapped by itself, so that nothing else keeps its pages."""
    file = stored[name].file
    with _whole(file), safetensors.safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name)


@contextmanager
def _whole(file: Path) -> Iterator[None]:
    """Refuse a file of weights that turns out to be none inside the block."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{file}: missing or damaged ({error}); download or save it again"
        ) from None


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


def _checked(kind: type[Checked], content: dict[str, Any], path: Path) -> Checked:
    """The fields of `kind` in a file's content, by their types."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: {name} cannot be read ({first['msg']}); download or save it again"
        ) from None


def _require(name: str, value: Any, ours: Any, path: Path) -> None:
    """Refuse what would make the model another function."""
    if value not in (None, ours):
        raise CheckpointError(
            f"{name} = {shown(value)} in {path}: this model computes {ours!r} only; use another"
            " checkpoint"
        )


def _finite(key: str, value: Tensor, folder: Path) -> Tensor:
    """`value`, whose smallest and largest elements are numbers."""
    if not value.is_floating_point() or not torch.stack(value.aminmax()).isfinite().all():
        raise CheckpointError(
            f"{key}: holds what is no finite decimal number in {folder}; use other weights"
        )
    return value
