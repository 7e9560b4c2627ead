"""A model in Hugging Face's format, for transformers and others."""

from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from slm2_minimal.config import DataError
from slm2_minimal.distributed.pretrained import check_tokenizer, load_model
from slm2_minimal.text.tokenizer import load_tokenizer


def export(source: str, out: str | Path, dtype: Literal["float32", "bfloat16"] = "float32") -> str:
    """Write the model `source` into the folder `out`, its weights in `dtype`; one line
    that says what was written.

    `source` is a run, a checkpoint, a Hugging Face folder or a Hub id. Where writing
    fails, `out` is as it was.

    Raises:
        CheckpointError: there is no such model, or its tokenizer's file is another now.
        DataError: `out` is there and not empty, or cannot be written.
    """
    folder = Path(out)
    new = []
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        taken = not new and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise _refused(out, error) from None
    if taken:
        raise DataError(f"out = {str(out)!r}: is there already; name a new folder, or an empty one")

    model, tokenizer_name = load_model(source)
    if tokenizer_name:
        with suppress(DataError):  # it may have been moved; then it is only named
            check_tokenizer(source, load_tokenizer(tokenizer_name))
    try:
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    except BaseException as error:
        with suppress(OSError):
            for file in folder.glob("*"):
                file.unlink()
        for path in new:
            with suppress(OSError):  # not made yet
                path.rmdir()
        if isinstance(error, OSError | SafetensorError):
            raise _refused(out, error) from None
        raise
    trained = f"; its tokenizer is {tokenizer_name}" if tokenizer_name else ""
    return f"{out}: {model.config.num_parameters():,} parameters in {dtype}{trained}"


def _refused(out: str | Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"out = {str(out)!r}: cannot be written ({reason}); name another folder")
