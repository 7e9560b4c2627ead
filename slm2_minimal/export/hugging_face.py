"""A model in Hugging Face's format, for transformers and others."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from slm2_minimal.config import DataError, ModelConfig
from slm2_minimal.distributed.pretrained import check_not_quantised, check_tokenizer, load_model
from slm2_minimal.export.tokenizer_files import chat_template_of, write_tokenizer
from slm2_minimal.files import write_json
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.tokenizer import load_tokenizer

TURN_END = "<|im_end|>"  # what closes a turn in ChatML; in the other formats the end of text


def export(
    source: str,
    out: str | Path,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    chat_template: str | None = None,
) -> str:
    """Write the model `source` into the folder `out`, its weights in `dtype`, and its
    tokenizer; one line that says what was written.

    `source` is a run, a checkpoint, a Hugging Face folder or a Hub id. The template
    of its chat format goes along, if it has one; `chat_template` replaces it. Where
    writing fails, `out` is as it was.

    Raises:
        CheckpointError: there is no such model, or its tokenizer's file is another now.
        DataError: `out` is there and not empty, or cannot be written; the model is
        quantised; or the tokenizer has more ids than the model.
    """
    folder = Path(out)
    new = _new_folders(folder)

    model, name = load_model(source, getattr(torch, dtype))
    check_not_quantised(source, model)
    tokenizer, missing = _tokenizer(source, model, name)
    if chat_template is None:
        chat_template = chat_template_of(source, name)

    try:
        model.save_pretrained(folder)
        generation = generation_config(model.config, tokenizer, chat_template)
        write_json(folder / "generation_config.json", generation)
        if tokenizer is not None:
            context = model.config.max_position_embeddings
            missing = write_tokenizer(folder, tokenizer, context, chat_template)
    except BaseException as error:
        _remove(folder, new)
        if isinstance(error, OSError | SafetensorError):
            raise _refused(out, error) from None
        raise

    written = "" if tokenizer is None else f"; tokenizer {tokenizer.name}"
    without = "" if missing is None else f"; {missing}"
    return f"{out}: {model.config.num_parameters():,} parameters in {dtype}{written}{without}"


def generation_config(
    config: ModelConfig, tokenizer: Tokenizer | None, chat_template: str | None
) -> dict[str, Any]:
    """What ends a text that `generate` of transformers writes; it is greedy by itself.

    A turn of ChatML has an end of its own, which ends the answer too.
    """
    end = config.eos_token_id
    if end is None and tokenizer is not None:
        end = tokenizer.eos_token_id
    ends: int | list[int] | None = end
    if tokenizer is not None and chat_template is not None and TURN_END in chat_template:
        turn_end = tokenizer.special_tokens.get(TURN_END)
        if turn_end is not None and end not in (None, turn_end):
            ends = [end, turn_end]
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": end,
        "do_sample": False,
    }


def _tokenizer(
    source: str, model: StableLM2, name: str | None
) -> tuple[Tokenizer | None, str | None]:
    """The model's tokenizer, or why none is written. Raises as `check_tokenizer`."""
    if name is None:
        return None, "no tokenizer was written: the model names none"
    try:
        tokenizer = load_tokenizer(name)
    except DataError as error:
        return None, f"no tokenizer was written: {error}"
    check_tokenizer(source, model, tokenizer)
    return tokenizer, None


def _new_folders(folder: Path) -> list[Path]:
    """`folder` and those above it that are not there yet.

    Raises DataError where it is there and not empty, or cannot be.
    """
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        taken = not new and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise _refused(folder, error) from None
    if taken:
        raise DataError(
            f"out = {str(folder)!r}: is there already; name a new folder, or an empty one"
        )
    return new


def _remove(folder: Path, new: list[Path]) -> None:
    """Put everything back as it was before the export; the folder was empty or new."""
    with suppress(OSError):
        for file in folder.glob("*"):
            file.unlink()
    for path in new:
        with suppress(OSError):  # not made yet
            path.rmdir()


def _refused(out: str | Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"out = {str(out)!r}: cannot be written ({reason}); name another folder")
