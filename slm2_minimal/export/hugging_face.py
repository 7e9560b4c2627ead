"""A model in Hugging Face's format, for transformers and others."""

from pathlib import Path
from typing import Literal

import torch

from slm2_minimal.config import DataError
from slm2_minimal.distributed.checkpoint import load_model


def export(source: str, out: str | Path, dtype: Literal["float32", "bfloat16"] = "float32") -> str:
    """Write the model `source` into the folder `out`, its weights in `dtype`; one line
    that says what was written.

    `source` is a run, a checkpoint, a Hugging Face folder or a Hub id. Where writing
    fails, `out` is as it was.

    Raises:
        CheckpointError: there is no such model.
        DataError: `out` is there and not empty.
    """
    folder = Path(out)
    existed = folder.is_dir()
    if folder.exists() and (not existed or any(folder.iterdir())):
        raise DataError(f"out = {str(out)!r}: is there already; name a new folder, or an empty one")
    model, tokenizer_name = load_model(source)

    try:
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    except BaseException:
        for file in folder.glob("*"):
            file.unlink()
        if folder.exists() and not existed:
            folder.rmdir()
        raise
    trained = f"; its tokenizer is {tokenizer_name}" if tokenizer_name else ""
    return f"{out}: {model.config.num_parameters():,} parameters in {dtype}{trained}"
