"""What a run of the trainer left behind, and the comparison of two."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from slm2_minimal.config import RunConfig
from slm2_minimal.train.trainer import Trainer

Make = Callable[..., RunConfig]
SHARD = (  # all of a checkpoint that one process writes
    "shard-00001-model-00001-of-00001.safetensors"
)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_bitwise(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def losses(config: RunConfig) -> dict[int, float]:
    lines = (Path(config.train.output_dir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def final_files(config: RunConfig) -> dict[str, torch.Tensor]:
    folder = Path(config.train.output_dir) / f"step-{config.train.steps:08d}"
    tensors = load_file(folder / SHARD)
    return {
        name: tensor.clone() for name, tensor in tensors.items()
    }  # not a view of a file that a test may alter


def poison(trainer: Trainer, *calls: int) -> None:
    """Make the loss of these forward passes, counted from 1, not a number."""
    count = itertools.count(1)

    def hook(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan") if next(count) in calls else output

    trainer.model.model.norm.register_forward_hook(hook)


def whole_batches(make: Make, name: str = "run", **changes: object) -> RunConfig:
    """One forward pass a step."""
    return make(
        name,
        **{
            "train.micro_batch_size": 8,
            "train.validate_every": 1000,
            "train.prompts": [],
            **changes,
        },
    )
