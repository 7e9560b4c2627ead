"""The small model that the recorded experiments train, and how they train it."""

import argparse
import functools
import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from slm2_minimal.config import RunConfig
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.evaluate.bits import text_scores
from slm2_minimal.evaluate.validation import ValidationSet, validation_losses
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.teach import load_record
from slm2_minimal.text.corpus import LANGUAGES, load_corpus
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import load_tokenizer
from slm2_minimal.train.trainer import Trainer

# 1.1M parameters: about ten seconds per hundred steps on one core
TOY: dict[str, Any] = {
    "model.hidden_size": 128,
    "model.intermediate_size": 352,
    "model.num_hidden_layers": 4,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 2,
    "model.initializer_range": 0.08,  # 0.02 x sqrt(2048 / 128), as in the preset
    "train.global_batch_tokens": 512,
    "train.micro_batch_size": 2,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.spike_sigmas": 0.0,  # every batch counts, whatever it does to the loss
    "train.output_dir": "runs/experiments",  # nothing is written there
}

ITEMS = 48  # of every task and language, in blocks of four


def parse_options(description: str | None, steps: int, seeds: int) -> argparse.Namespace:
    """`--steps` and `--seeds` of a script, with these defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=seeds)
    return parser.parse_args()


def begun(path: Path, command: str, wanted: int) -> list[dict[str, Any]]:
    """The runs of a record that `command` has begun and not finished."""
    record = load_record(path) if path.is_file() else {"command": ""}
    if record["command"] != command or len(record["results"]["runs"]) == wanted:
        return []
    runs: list[dict[str, Any]] = record["results"]["runs"]
    return runs


@functools.cache
def validation_sets() -> dict[str, ValidationSet]:
    """The held-out texts of all seven languages, the same for every run, whatever it
    trains on.
    """
    config = RunConfig.preset("tiny").data
    data = open_training_data(config, load_tokenizer(config.tokenizer))
    return {
        name: ValidationSet(
            data.held_out[name], data.token_counts[name], config.seq_len, batch_size=16
        )
        for name in LANGUAGES
    }


def train_toy(
    steps: int, validate_at: Collection[int], weights: Path | None = None, **overrides: Any
) -> dict[str, Any]:
    """Train the toy model and return its curve: learning rate, loss and unclipped
    gradient norm of each step; validation losses after the steps named.

    Nothing is written but the last weights, to the folder `weights`. `overrides` are
    those of `RunConfig.load("tiny", ...)`, with a double underscore for the dot.
    """
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    config = RunConfig.load("tiny", TOY | {"train.steps": steps} | changes)
    trainer = Trainer.from_config(config)

    curve: dict[str, Any] = {"rates": [], "losses": [], "grad_norms": [], "validation": {}}
    started = time.perf_counter()
    for step in range(1, steps + 1):
        values = trainer.step()
        curve["rates"].append(float(f"{values['lr']:.4g}"))
        curve["losses"].append(round(values["loss"], 4))
        curve["grad_norms"].append(round(values["grad_norm"], 4))
        if step in validate_at:
            found = validation_losses(trainer.model, validation_sets(), torch.device("cpu"))
            curve["validation"][step] = {name: round(loss, 4) for name, loss in found.items()}

    if weights is not None:
        trainer.model.save_pretrained(weights)
    seconds = time.perf_counter() - started
    print(f"  {changes}: {seconds:.0f} s, loss {curve['losses'][-1]:.3f}", flush=True)
    return curve


def held_out(languages: Collection[str]) -> list[Document]:
    """Documents that no toy is trained on: parallel ones have the same place in every
    language.
    """
    percent = RunConfig.preset("tiny").data.validation_percent
    texts = load_corpus(languages=languages)
    return [each for each in texts if is_validation(each.id, percent)]


@functools.cache
def local_tasks(names: tuple[str, ...]) -> dict[str, Any]:
    """The tasks and groups, with their items."""
    from slm2_minimal.evaluate.results import load_tasks

    return load_tasks(names)


def scored(model: StableLM2, texts: list[Document], tasks: tuple[str, ...]) -> dict[str, Any]:
    """`bits`: by language, [nats, tokens, bytes] of every document, read in windows as
    long as the sequences of training. `tasks`: the share of right answers by task and
    language, of the first ITEMS.
    """
    from slm2_minimal.evaluate.harness import SLM2
    from slm2_minimal.evaluate.results import run_tasks

    config = RunConfig.preset("tiny").data
    tokenizer = load_tokenizer(config.tokenizer)
    bits: dict[str, list[list[float]]] = defaultdict(list)
    for each in text_scores(model, tokenizer, texts, context=config.seq_len):
        bits[each.document.language].append([round(each.nats, 2), each.tokens, each.bytes])

    *_, found = run_tasks(SLM2(model, tokenizer), local_tasks(tasks), limit=ITEMS)
    right = {name: round(found["results"][name]["acc,none"], 4) for name in found["items"]}
    return {"bits": bits, "tasks": right}
