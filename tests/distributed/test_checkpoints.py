"""Checkpoints between strategies and numbers of ranks, bitwise resume on two ranks,
damage, and failures while writing.
"""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor
from transformers import StableLmForCausalLM

from slm2_minimal.config import RunConfig
from slm2_minimal.distributed import checkpoint, pretrained
from slm2_minimal.distributed.world import World
from slm2_minimal.train.trainer import Trainer

Make = Callable[..., RunConfig]
MODEL = {
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 4,
    "model.intermediate_size": 68,
    "train.micro_batch_size": 1,
    "data.validation_percent": 0,
    "train.save_every": 5,
    "train.prompts": [],
    "train.keep_checkpoints": 10,
    "schedule.cooldown_start": 26,  # of the longest, which the shorter go on to
}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, moments and step counts, put together from all ranks."""
    trainer.replica.reshard()
    return {
        name: whole(tensor)
        for name, tensor in checkpoint.named_tensors(trainer.model, trainer.optimizer).items()
    }


def resumed(world: World, tables: dict[str, Any]) -> dict[str, Tensor]:
    """What a run finds when it goes on."""
    trainer = Trainer.from_config(RunConfig.from_dict(tables), world)
    trainer.resume()
    return state(trainer)


def trained(world: World, tables: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """What it has at the end, and what it was warned of."""
    trainer = Trainer.from_config(RunConfig.from_dict(tables), world)
    told: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("slm2_minimal")
    logger.addHandler(listener)
    trainer.run()
    logger.removeHandler(listener)
    return state(trainer), told


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        if tolerance:
            torch.testing.assert_close(
                found[name],
                expected[name],
                msg=lambda text, name=name: f"{name}: {text}",
                **tolerance,
            )
        else:
            assert torch.equal(found[name], expected[name]), name


def test_from_one_rank_to_two_to_four_to_one(ranks: Any, small_run: Make) -> None:
    """Each part finds bitwise what the one before left, optimizer included; the end is
    that of one process to the rounding of sums.
    """
    parts = [
        (1, {}, 5),
        (2, {"strategy": "zero1"}, 10),
        (4, {"strategy": "fsdp", "tensor_parallel": 2, "checkpointing": "full"}, 15),
        (4, {"strategy": "hybrid", "shard_ranks": 2}, 20),
        (2, {"strategy": "ddp"}, 25),
        (1, {}, 30),
    ]
    left: dict[str, Tensor] = {}
    for size, parallel, steps in parts:
        tables = small_run(**MODEL, **{"train.steps": steps}).to_dict() | {"parallel": parallel}
        single = World(torch.device("cpu"))
        if left:
            for found in ranks(size, resumed, tables) if size > 1 else [resumed(single, tables)]:
                assert_same(found, left)
        ends = ranks(size, trained, tables) if size > 1 else [trained(single, tables)]
        left = ends[0][0]
        assert not ends[0][1]
        for other, _ in ends[1:]:
            assert_same(other, left)
    straight = small_run("straight", **MODEL, **{"train.steps": 30})
    expected = trained(World(torch.device("cpu")), straight.to_dict())[0]
    # Softmax does not see the bias of the keys: its gradient is rounding, of which Adam
    # makes whole steps.
    assert_same(
        *(
            {name: value for name, value in end.items() if "k_proj.bias" not in name}
            for end in (left, expected)
        ),
        rtol=1e-3,
        atol=2e-5,
    )


@pytest.mark.parametrize("parallel", [{"strategy": "zero1"}, {"strategy": "ddp"}], ids=str)
def test_resume_on_two_ranks_is_bitwise(
    parallel: dict[str, Any], ranks: Any, small_run: Make
) -> None:
    straight = small_run("straight", **MODEL).to_dict() | {"parallel": parallel}
    ranks(
        2,
        trained,
        small_run("parts", **MODEL, **{"train.steps": 10}).to_dict() | {"parallel": parallel},
    )
    [(second, _), _] = ranks(
        2, trained, small_run("parts", **MODEL).to_dict() | {"parallel": parallel}
    )
    assert_same(second, ranks(2, trained, straight)[0][0])


def test_files_of_a_checkpoint(ranks: Any, small_run: Make) -> None:
    """One file a rank, nothing that could be unpickled, and each tensor's parts add up
    to it.
    """
    config = small_run(**MODEL, **{"train.steps": 5})
    [(end, _), _] = ranks(2, trained, config.to_dict() | {"parallel": {"strategy": "zero1"}})
    folder = Path(config.train.output_dir) / "step-00000005"
    assert sorted(path.name for path in folder.iterdir()) == [
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
        "state.json",
    ]
    one, two = (load_file(path) for path in sorted(folder.glob("*.safetensors")))
    name = "optimizer/model.layers.0.mlp.up_proj.weight/exp_avg"
    assert torch.equal(torch.cat([one[name], two[name]]), end[name])
    assert len(one) + len(two) > len(end)


def test_a_model_of_many_ranks_in_one_process(ranks: Any, small_run: Make, tmp_path: Path) -> None:
    """`load_model` and transformers see the weights of a sharded run."""
    config = small_run(**MODEL, **{"train.steps": 5})
    [(end, _), *_] = ranks(
        4, trained, config.to_dict() | {"parallel": {"strategy": "fsdp", "tensor_parallel": 2}}
    )
    model, tokenizer = pretrained.load_model(config.train.output_dir)
    assert tokenizer == "tiny"
    assert all(
        torch.equal(parameter, end[f"model/{name}"]) for name, parameter in model.named_parameters()
    )
    model.save_pretrained(tmp_path / "export")
    theirs = StableLmForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-5, rtol=1e-4)


# Damage


def damage(folder: Path, kind: str) -> None:
    last = sorted(folder.glob("*.safetensors"))[-1]
    if kind == "a flipped bit":
        content = bytearray(last.read_bytes())
        content[-5] ^= 4
        last.write_bytes(content)
    elif kind == "a missing file":
        last.unlink()
    elif kind == "a short file":
        last.write_bytes(last.read_bytes()[:-10])
    else:
        (folder / checkpoint.STATE).write_text("{")


@pytest.mark.parametrize(
    "kind", ["a flipped bit", "a missing file", "a short file", "half a state"]
)
def test_a_damaged_checkpoint_is_passed_over_by_all_ranks(
    kind: str, ranks: Any, small_run: Make
) -> None:
    tables = small_run(**MODEL).to_dict() | {"parallel": {"strategy": "zero1"}}
    run = Path(tables["train"]["output_dir"])
    [(straight, _), _] = ranks(2, trained, tables)
    damage(run / "step-00000020", kind)
    [(again, told), (_, silent)] = ranks(2, trained, tables)
    assert_same(again, straight)
    assert len(told) == 1
    assert "step-00000020" in told[0]
    assert {"damaged-step-00000020", "step-00000020"} <= {path.name for path in run.iterdir()}, (
        "set aside, and made again"
    )
    assert told[0].endswith("trying the one before")
    assert not silent, "one rank speaks for all"


# Failures while writing


def broken_disk(world: World, tables: dict[str, Any], rank: int) -> str:
    """A run in which one rank cannot write its part of the second checkpoint."""
    trainer = Trainer.from_config(RunConfig.from_dict(tables), world)
    sign = trainer.checkpoints.sign

    def failing(part: Path) -> None:
        if world.rank == rank and "00000010" in part.name:
            raise OSError(28, "No space left on device")
        sign(part)

    trainer.checkpoints.sign = failing  # type: ignore[method-assign]
    try:
        for _ in range(1000):
            trainer.step()
            if trainer.state.step in (5, 10):
                trainer.save()
    except OSError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_write(rank: int, ranks: Any, small_run: Make) -> None:
    """All ranks end alike within a step and say which it was, nothing is published, and
    the checkpoint before is whole.
    """
    enough = {"data.sources.en.max_epochs": 1e9, "data.sources.math.max_epochs": 1e9}
    tables = small_run(**MODEL, **enough).to_dict() | {"parallel": {"strategy": "zero1"}}
    run = Path(tables["train"]["output_dir"])
    message = (
        f"writing a checkpoint into {str(run)!r} failed on rank {rank}: [Errno 28] No space left on"
        " device; the ones before are intact"
    )
    assert ranks(2, broken_disk, tables, rank) == [message, message]
    assert [folder.name for folder in checkpoint.steps(run)] == ["step-00000005"]
    checkpoint.read_state(run / "step-00000005")


def test_training_goes_on_while_a_checkpoint_is_written(
    small_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written are the tensors of the moment of saving, whatever the steps after
    it change.
    """
    trainer = Trainer.from_config(small_run(**MODEL))
    write = HuggingFaceStorageWriter.write_data

    def slow(self: Any, *arguments: Any) -> Any:
        time.sleep(1.0)
        return write(self, *arguments)

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", slow)
    trainer.step()
    before = state(trainer)
    began = time.monotonic()
    trainer.save()
    assert time.monotonic() - began < 0.9
    trainer.step()
    assert checkpoint.steps(trainer.run_dir) == []
    trainer.checkpoints.wait()
    [folder] = checkpoint.steps(trainer.run_dir)
    saved = load_file(next(folder.glob("*.safetensors")))
    assert_same(saved, before)


def test_what_a_crash_left_is_removed(small_run: Make) -> None:
    trainer = Trainer.from_config(small_run(**MODEL))
    left = trainer.run_dir / ".step-00000003.part"
    left.mkdir(parents=True)
    trainer.step()
    trainer.save()
    trainer.checkpoints.wait()
    assert not left.exists()
    shutil.rmtree(trainer.run_dir / "step-00000001")
    assert not trainer.rewind()
