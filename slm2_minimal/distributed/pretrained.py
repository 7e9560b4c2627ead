"""A model's weights from wherever they lie: a run, a checkpoint, a folder, the Hub."""

from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import CheckpointError, DataError, UserError
from slm2_minimal.config.paths import expand
from slm2_minimal.distributed.checkpoint import (
    BEST,
    MODEL,
    STATE,
    check_architecture,
    folder_name,
    read_state,
    read_tensors,
    read_whole,
    saved_config,
    steps,
    weights_of,
)
from slm2_minimal.distributed.device import pick_device, require_memory
from slm2_minimal.distributed.world import World
from slm2_minimal.files import read_json
from slm2_minimal.model import hub
from slm2_minimal.model.quantised import quantised_layers
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.chat import Format
from slm2_minimal.text.tokenizer import Arcade100k, Tokenizer, find_tokenizer, load_tokenizer

# Fields of a model's configuration on which no weight depends.
FREE_FIELDS = ("max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id")


def load_model(
    path_or_id: str, dtype: torch.dtype | None = torch.float32
) -> tuple[StableLM2, str | None]:
    """(model on the CPU in `dtype`, its tokenizer's name if known), as `load_weights`.

    A folder that holds a tokenizer is that tokenizer's name. A folder that `slm2
    quantise` wrote gives a quantised model. For `dtype` None see
    `StableLM2.from_pretrained`; a run's weights are in fp32.
    """
    world = World(torch.device("cpu"))
    folder, state = _find(path_or_id, world)
    if state is None:
        if hub.read_quantisation(folder) is None:
            number = hub.read_config(folder).num_parameters()
            _check_memory(path_or_id, number * (2 if dtype is None else dtype.itemsize), world)
        else:
            files = folder.glob("*.safetensors")
            _check_memory(path_or_id, sum(file.stat().st_size for file in files), world)
        return StableLM2.from_pretrained(folder, dtype), _tokenizer_in(folder)

    saved = saved_config(folder, state)
    _check_memory(path_or_id, 4 * saved.model.num_parameters(), world)
    with torch.device("meta"):
        model = StableLM2(saved.model)
    read_whole(folder, model)
    return model.to(dtype or torch.float32), saved.data.tokenizer


def _check_memory(path_or_id: str, weight_bytes: int, world: World) -> None:
    """That the weights fit, be they in fp32 or of fewer bits."""
    field = f"model = {path_or_id!r}"
    require_memory(weight_bytes, world.device, field, "use a machine with more memory")


def load_weights(path_or_id: str, model: StableLM2, world: World) -> str | None:
    """Fill a model under any strategy with weights alone; name their tokenizer.

    They come from a run's folder (its best checkpoint, or else the newest), a
    checkpoint, a folder in Hugging Face's format, or a Hub id. Gathered weights must
    have been dropped (`Replica.reshard`). Raises CheckpointError for none, damaged
    ones, and those of another architecture.
    """
    folder, state = _find(path_or_id, world)
    if state is None:
        theirs, prefix, tokenizer = hub.read_config(folder), "", _tokenizer_in(folder)
    else:
        config = saved_config(folder, state)
        theirs, prefix, tokenizer = config.model, MODEL, config.data.tokenizer
    free = {field: getattr(model.config, field) for field in FREE_FIELDS}
    check_architecture(folder, theirs.replace(**free), model.config)

    tensors = weights_of(model, prefix)
    if state is None and theirs.tie_word_embeddings:
        # of a tied table one is stored, under either name
        name = hub.TABLE if hub.TABLE in hub.stored_names(folder) else hub.HEAD
        tensors[name] = tensors.pop(hub.TABLE)
    read_tensors(folder, tensors, world)
    return tokenizer


def load_with_tokenizer(
    path_or_id: str,
    tokenizer: str | None = None,
    device: str = "auto",
    *,
    dtype: torch.dtype | None = torch.float32,
) -> tuple[StableLM2, Tokenizer]:
    """(model on the device, its tokenizer or the named one, which fit each other).

    Raises UserError where the model has none and none is named.
    """
    named = None
    if tokenizer is not None:  # before the model, which takes long
        named = load_tokenizer(expand(tokenizer, "tokenizer"))
    model, trained_with = load_model(path_or_id, dtype)
    vocab_size = model.config.vocab_size
    if named is None and trained_with is None and vocab_size != Arcade100k.padded_vocab_size:
        raise UserError(
            f"tokenizer: {path_or_id!r} has none, and its {vocab_size} ids are not arcade100k's;"
            " name the one it was trained with by --tokenizer"
        )
    chosen = named or load_tokenizer(trained_with or "arcade100k")
    check_tokenizer(path_or_id, model, chosen)
    return model.to(pick_device(device)), chosen


def check_not_quantised(path_or_id: str, model: StableLM2) -> None:
    """Raise DataError for a model of integer weights, where an original is needed."""
    if next(quantised_layers(model), None) is not None:
        raise DataError(f"model = {path_or_id!r}: is quantised already; name the original")


def chat_format(path_or_id: str) -> Format | None:
    """The format of the conversations that a run was trained on; None for a run on
    text, and for what is no run.
    """
    folder = _checkpoint_of(Path(path_or_id))
    if folder is None:
        return None
    try:
        data = saved_config(folder, read_json(folder / STATE)).data
    except (OSError, ValueError):  # `load_model` says what is wrong
        return None
    return data.chat if data.is_chat else None


def check_tokenizer(path_or_id: str, model: StableLM2, tokenizer: Tokenizer) -> None:
    """Hold a tokenizer against the model that `load_model` took from there.

    Raises DataError where it has more ids than the model, and CheckpointError where the
    model was trained with another vocabulary. Hugging Face's format does not say with
    which.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            f"tokenizer = {tokenizer.name!r}: has {tokenizer.vocab_size} ids, the model"
            f" {model.config.vocab_size}; name the one it was trained with"
        )
    folder = _checkpoint_of(Path(path_or_id))
    trained_with = "" if folder is None else read_json(folder / STATE).get("tokenizer_fingerprint")
    if trained_with and trained_with != tokenizer.fingerprint:
        raise CheckpointError(
            f"tokenizer = {tokenizer.name!r}: {path_or_id!r} was trained with another vocabulary"
            f" ({trained_with}, this is {tokenizer.fingerprint}); give the file of that time"
        )


def _find(path_or_id: str, world: World) -> tuple[Path, dict[str, Any] | None]:
    """(folder of the weights, its state); None for Hugging Face's format."""
    folder = world.gather(_checkpoint_of(Path(path_or_id)))[0]  # one rank says for all
    if folder is None:
        return hub.resolve(path_or_id), None
    return folder, read_state(folder, world)


def _tokenizer_in(folder: Path) -> str | None:
    return str(folder) if find_tokenizer(folder) else None


def _checkpoint_of(path: Path) -> Path | None:
    """The folder itself, or of a run the best or else the newest; None if neither."""
    if (path / STATE).exists():
        return path
    saved = steps(path)
    try:
        best = path / folder_name(int(read_json(path / BEST)["step"]))
    except (OSError, ValueError, KeyError, TypeError):  # none, or a note that is damaged
        best = None
    if best in saved:
        return best
    return saved[-1] if saved else None
