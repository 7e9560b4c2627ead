"""Every strategy against one process: the same weights at the start, the same global
batches, the same losses and gradient norms.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from slm2_minimal.config import ConfigError, RunConfig
from slm2_minimal.distributed.parallel import parallelize
from slm2_minimal.distributed.world import World
from slm2_minimal.evaluate.validation import validation_losses
from slm2_minimal.train.trainer import Trainer

Make = Callable[..., RunConfig]
MODEL = {
    "model.num_hidden_layers": 3,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 2,
    "train.micro_batch_size": 1,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "zero1": {"strategy": "zero1"},
    "fsdp": {"strategy": "fsdp"},
    "hybrid": {"strategy": "hybrid", "shard_ranks": 2},
    "zero1 and tensor": {"strategy": "zero1", "tensor_parallel": 2},
    "fsdp and tensor": {"strategy": "fsdp", "tensor_parallel": 2},
    "ddp, selective": {"strategy": "ddp", "checkpointing": "selective"},
    "zero1, selective": {"strategy": "zero1", "checkpointing": "selective"},
    "fsdp, full": {"strategy": "fsdp", "checkpointing": "full"},
    "fsdp and tensor, selective": {
        "strategy": "fsdp",
        "tensor_parallel": 2,
        "checkpointing": "selective",
    },
}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def curve(world: World, tables: dict[str, Any], steps: int = 20) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    trainer = Trainer.from_config(RunConfig.from_dict(tables), world)
    values = [trainer.step() for _ in range(steps)]
    return [(value["loss"], value["grad_norm"]) for value in values]


def start(world: World, tables: dict[str, Any]) -> dict[str, Tensor]:
    """All weights before the first step."""
    model = parallelize(RunConfig.from_dict(tables), world, torch.float32).model
    return {name: whole(parameter) for name, parameter in model.named_parameters()}


def rows(world: World, tables: dict[str, Any]) -> Tensor:
    """The token ids that this rank reads in the second step."""
    trainer = Trainer.from_config(RunConfig.from_dict(tables), world)
    return trainer.loader.batch(
        trainer.batch_rows, trainer.batch_rows, trainer.replica.data_rank, trainer.replica.data_size
    ).input_ids


def gathered(world: World, tables: dict[str, Any]) -> list[str]:
    """What is on this rank before, during and after a step: dtypes and bytes of the
    first block's up projection.
    """
    trainer = Trainer.from_config(RunConfig.from_dict(tables), world)
    seen: list[str] = []
    block = trainer.model.model.layers[0]

    def note(*_: object) -> None:
        weight = block.mlp.up_proj.weight
        seen.append(
            f"{str(weight.dtype).removeprefix('torch.')}"
            f" {weight.to_local().nbytes if isinstance(weight, DTensor) else weight.nbytes}"
        )

    block.register_forward_pre_hook(note, prepend=True)  # before sharding's own hook
    note()
    trainer.step()
    note()
    return seen


@cache
def reference(frozen: str) -> list[tuple[float, float]]:
    return curve(World(torch.device("cpu")), eval(frozen))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (name, size)
        for name in STRATEGIES
        for size in (2, 4)
        if size == 4 or not {"hybrid", "tensor"} & set(name.split())
    ],
)
def test_the_curve_of_one_process(name: str, size: int, ranks: Any, small_run: Make) -> None:
    """20 steps in fp32: losses to 1e-5 (they differ by the order of sums), norms to
    1e-4, and every rank knows the same.
    """
    tables = small_run(**MODEL).to_dict() | {"parallel": STRATEGIES[name]}
    single = reference(
        repr(tables | {"parallel": {}, "train": tables["train"] | {"output_dir": "unused"}})
    )
    found = ranks(size, curve, tables)
    assert all(other == found[0] for other in found[1:])
    for (loss, norm), (expected_loss, expected_norm) in zip(found[0], single, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)
    assert single[-1][0] < single[0][0] - 0.5, "the curve must have something to tell"


@pytest.mark.parametrize("name", ["ddp", "zero1"])
def test_the_curve_of_fine_tuning(name: str, ranks: Any, small_run: Make) -> None:
    """On conversations, where ranks have unequal numbers of learned tokens."""
    source = {"format": "chat", "languages": ["en", "de"], "max_epochs": 100}
    data = {"data.sources": {"own": source}, "data.seq_len": 64}
    tables = small_run(**MODEL, **data).to_dict() | {"parallel": STRATEGIES[name]}
    single = curve(World(torch.device("cpu")), tables | {"parallel": {}}, 6)
    found = ranks(2, curve, tables, 6)
    assert found[0] == found[1]
    for (loss, norm), (expected_loss, expected_norm) in zip(found[0], single, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)


@pytest.mark.parametrize("name", ["ddp", "zero1", "fsdp", "zero1 and tensor"])
def test_the_curve_in_bf16(name: str, ranks: Any, small_run: Make) -> None:
    """bf16 has 8 bits: the losses stay within half a percent of the fp32 ones over 20
    steps.
    """
    tables = small_run(**MODEL | {"train.dtype": "bfloat16"}).to_dict() | {
        "parallel": STRATEGIES[name]
    }
    single = reference(repr(small_run("unused", **MODEL).to_dict() | {"parallel": {}}))
    for (loss, _), (expected, _) in zip(ranks(2, curve, tables)[0], single, strict=True):
        assert loss == pytest.approx(expected, rel=5e-3)


def test_per_block_compilation_changes_nothing(ranks: Any, small_run: Make) -> None:
    tables = small_run(**MODEL).to_dict()
    plain = ranks(2, curve, tables | {"parallel": {"strategy": "zero1"}}, 4)[0]
    compiled = ranks(
        2,
        curve,
        tables | {"parallel": {"strategy": "zero1", "compile": True, "checkpointing": "selective"}},
        4,
    )[0]
    for (loss, norm), (expected_loss, expected_norm) in zip(compiled, plain, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)


@pytest.mark.parametrize("name", ["ddp", "zero1", "hybrid", "fsdp and tensor"])
def test_every_strategy_starts_from_the_same_weights(
    name: str, ranks: Any, small_run: Make
) -> None:
    """Bitwise, on every rank, also where a dimension does not divide among the
    ranks.
    """
    tables = small_run(
        **MODEL | {"model.intermediate_size": 70, "model.vocab_size": 1031}
    ).to_dict()
    single = start(World(torch.device("cpu")), tables)
    for found in ranks(4, start, tables | {"parallel": STRATEGIES[name]}):
        assert found.keys() == single.keys()
        assert all(torch.equal(found[key], single[key]) for key in single)


@pytest.mark.parametrize(("size", "tensor"), [(2, 1), (4, 1), (4, 2)])
def test_global_batches_are_the_same(size: int, tensor: int, ranks: Any, small_run: Make) -> None:
    tables = small_run(**MODEL).to_dict()
    whole_batch = rows(World(torch.device("cpu")), tables)
    found = ranks(
        size, rows, tables | {"parallel": {"strategy": "zero1", "tensor_parallel": tensor}}
    )
    assert torch.equal(torch.cat(found[::tensor]), whole_batch)
    assert all(torch.equal(found[i], found[i - i % tensor]) for i in range(size)), (
        "ranks of tensor parallelism read the same rows"
    )


def test_when_weights_are_whole(ranks: Any, small_run: Make) -> None:
    """zero1 gathers once a step and keeps bf16 replicas for all four micro-batches;
    fsdp gathers for each. Then fp32 shards remain.
    """
    tables = small_run(**MODEL | {"train.dtype": "bfloat16"}).to_dict()
    shard, replica = f"float32 {64 * 32 * 4 // 2}", f"bfloat16 {64 * 32 * 2}"
    assert ranks(2, gathered, tables | {"parallel": {"strategy": "zero1"}})[0] == [
        shard,
        shard,
        replica,
        replica,
        replica,
        shard,
    ]
    assert ranks(2, gathered, tables | {"parallel": {"strategy": "fsdp"}})[0] == [shard] * 6


def collectives(world: World, tables: dict[str, Any]) -> dict[str, int]:
    """How many of each kind the third step makes: in the second, DDP still agrees on
    its buckets.
    """
    trainer = Trainer.from_config(RunConfig.from_dict(tables), world)
    for _ in range(2):
        trainer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.step()
    return {
        event.key.removeprefix("c10d::").strip("_"): event.count
        for event in profile.key_averages()
        if event.key.startswith("c10d::")
    }


SPOKEN = 2  # all-reduces of a few numbers a step: valid tokens with the wish to stop, and the loss


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # one bucket of gradients, however many micro-batches; the norm of whole
        # gradients needs no message
        ("ddp", [{"allreduce": SPOKEN + 1}] * 2),
        # three blocks and what is outside of them, once a step each way; and the norm
        ("zero1", [{"allreduce": SPOKEN + 1, "allgather_base": 4, "reduce_scatter_base": 4}] * 2),
        # for each micro-batch: blocks are gathered for the forward and for the backward
        # pass, the outside once
        (
            "fsdp",
            [
                {
                    "allreduce": SPOKEN + 1,
                    "allgather_base": n * (4 + 3),
                    "reduce_scatter_base": n * 4,
                }
                for n in (2, 4)
            ],
        ),
    ],
)
def test_what_accumulation_costs_in_messages(
    name: str, expected: list[dict[str, int]], ranks: Any, small_run: Make
) -> None:
    """Two and four micro-batches a step: nothing under ddp and zero1, which wait for
    the last.
    """
    for rows, counts in zip((2, 1), expected, strict=True):
        tables = small_run(**MODEL | {"train.micro_batch_size": rows}).to_dict() | {
            "parallel": STRATEGIES[name]
        }
        assert ranks(2, collectives, tables)[0] == counts


# What a user can get wrong


def refused(world: World, tables: dict[str, Any]) -> str:
    try:
        Trainer.from_config(RunConfig.from_dict(tables), world)
    except ConfigError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"strategy": "single"}, "parallel.strategy = 'single': is for one process, not 2"),
        (
            {"strategy": "hybrid", "shard_ranks": 3},
            "parallel.shard_ranks = 3: must divide the number of processes, 2",
        ),
        (
            {"strategy": "zero1", "tensor_parallel": 4},
            "parallel.tensor_parallel = 4: must divide the GPUs of a node, 2",
        ),
    ],
)
def test_strategies_that_do_not_fit(
    parallel: dict[str, Any], message: str, ranks: Any, small_run: Make
) -> None:
    tables = small_run(**MODEL | {"model.num_key_value_heads": 4}).to_dict() | {
        "parallel": parallel
    }
    assert all(found.startswith(message) for found in ranks(2, refused, tables))


def test_what_does_not_divide(ranks: Any, small_run: Make) -> None:
    tables = small_run(**MODEL | {"train.micro_batch_size": 8}).to_dict() | {
        "parallel": {"strategy": "zero1"}
    }
    [message, _] = ranks(2, refused, tables)
    assert message.startswith(
        "train.global_batch_tokens = 256: must be a multiple of 512 = 2 x micro_batch_size"
    )
    tied = small_run(**MODEL | {"model.tie_word_embeddings": True}).to_dict() | {
        "parallel": {"strategy": "fsdp"}
    }
    assert ranks(2, refused, tied)[0].startswith(
        "model.tie_word_embeddings = true: cannot be sharded"
    )


def test_one_process_by_itself(small_run: Make) -> None:
    with pytest.raises(
        ConfigError,
        match=r"parallel.strategy = 'fsdp': this is one process by itself; start it with torchrun",
    ):
        Trainer.from_config(small_run(**{"parallel.strategy": "fsdp"}))
    with pytest.raises(
        ConfigError,
        match=r"parallel.tensor_parallel = 3: must divide model.num_attention_heads = 4",
    ):
        small_run(**MODEL | {"parallel.strategy": "fsdp", "parallel.tensor_parallel": 3})
    with pytest.raises(
        ConfigError,
        match=r"parallel.tensor_parallel = 2: goes with strategy zero1 or fsdp, not 'ddp'",
    ):
        small_run(**MODEL | {"parallel.strategy": "ddp", "parallel.tensor_parallel": 2})


# Validation


def validated(world: World, tables: dict[str, Any]) -> dict[str, float]:
    """Validation losses before the first step."""
    trainer = Trainer.from_config(RunConfig.from_dict(tables), world)
    return validation_losses(
        trainer.model,
        trainer.validation,
        world.device,
        rank=trainer.replica.data_rank,
        size=trainer.replica.data_size,
        world=world,
    )


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero1 and tensor"])
def test_ranks_share_a_validation(name: str, ranks: Any, small_run: Make) -> None:
    """Also where there are fewer batches than ranks; every rank knows the whole."""
    tables = small_run(**MODEL).to_dict()
    expected = validated(World(torch.device("cpu")), tables)
    for found in ranks(4, validated, tables | {"parallel": STRATEGIES[name]}):
        assert found == pytest.approx(expected, rel=1e-5)
