"""The small model that the recorded experiments train, and how they train it."""

import functools
import time
from collections.abc import Collection
from typing import Any

import torch
from slm2_minimal.config import RunConfig
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.evaluate.validation import ValidationSet, validation_losses
from slm2_minimal.text.corpus import LANGUAGES
from slm2_minimal.text.tokenizer import load_tokenizer
from slm2_minimal.train.trainer import Trainer

# 1.1M parameters: about ten seconds per hundred steps on one core.
TOY: dict[str, Any] = {
    "model.hidden_size": 128,
    "model.intermediate_size": 352,
    "model.num_hidden_layers": 4,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 2,
    "model.initializer_range": (
        0.08
    ),  # 0.02 x sqrt(2048 / 128), as in the preset
    "train.global_batch_tokens": 512,
    "train.micro_batch_size": 2,
    "train.device": "cpu",
    "train.spike_sigmas": (
        0.0
    ),  # every batch counts, whatever it does to the loss
    "train.output_dir": "runs/experiments",  # nothing is written there
    "train.dtype": "float32",
}


@functools.cache
def validation_sets() -> dict[str, ValidationSet]:
    """The held-out texts of all seven languages, the same for every run, whatever it
    trains on.
    """
    config = RunConfig.preset("tiny")
    data = open_training_data(
        config.data, load_tokenizer(config.data.tokenizer)
    )
    return {
        name: ValidationSet.build(
            data.held_out[name],
            data.token_counts[name],
            config.data.seq_len,
            rows=16,
        )
        for name in LANGUAGES
    }


def train_toy(
    steps: int, validate_at: Collection[int], **overrides: Any
) -> dict[str, Any]:
    """Train the toy model and return its curve: per step rate, loss and unclipped
    gradient norm; validation losses after the steps named.

    Nothing is written. `overrides` are those of `RunConfig.load("tiny", ...)`, with a
    double underscore for the dot.
    """
    changes = {
        key.replace("__", "."): value for key, value in overrides.items()
    }
    trainer = Trainer.from_config(
        RunConfig.load("tiny", TOY | {"train.steps": steps} | changes)
    )
    rates, losses, norms, validation = [], [], [], {}
    started = time.perf_counter()
    for step in range(1, steps + 1):
        values = trainer.step()
        rates.append(float(f"{values['rate']:.4g}"))
        losses.append(round(values["loss"], 4))
        norms.append(round(values["grad_norm"], 4))
        if step in validate_at:
            found = validation_losses(
                trainer.model, validation_sets(), torch.device("cpu")
            )
            validation[step] = {
                name: round(loss, 4) for name, loss in found.items()
            }
    print(
        f"  {changes}: {time.perf_counter() - started:.0f} s, loss"
        f" {losses[-1]:.3f}",
        flush=True,
    )
    return {
        "rates": rates,
        "losses": losses,
        "grad_norms": norms,
        "validation": validation,
    }
