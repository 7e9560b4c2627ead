"""A run small enough for tests: one layer, a few hundred steps a minute, on a slice of the embedded corpus."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.config import RunConfig

OVERRIDES: dict[str, Any] = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 2,
    "model.max_position_embeddings": 64,
    "data.seq_len": 32,
    "data.sources": {
        "en": {"languages": ["en"], "domains": ["recipes"], "weight": 2},
        "math": {"languages": ["math"], "weight": 1},
    },
    "data.validation_percent": 20,
    "train.steps": 20,
    "train.global_batch_tokens": 256,
    "train.micro_batch_size": 4,
    "train.dtype": "float32",
    "train.device": "cpu",
    "train.log_every": 5,
    "train.validate_every": 10,
    "train.save_every": 10,
    "train.prompts": ["12 + 7 ="],
    "train.sample_tokens": 8,
    "schedule.warmup_steps": 2,
    "schedule.decay_steps": 22,
    "schedule.cooldown_start": 16,
    "schedule.cooldown_steps": 4,
}


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., RunConfig]:
    """`small_run(name="run", **{"section.field": value})`: the configuration of a small run under tmp_path."""

    def make(name: str = "run", **changes: Any) -> RunConfig:
        return RunConfig.load("tiny", OVERRIDES | {"train.output_dir": str(tmp_path / name)} | changes)

    return make
