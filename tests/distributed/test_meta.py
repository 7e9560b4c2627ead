"""The full-size model through every strategy's wrapping as one of eight ranks, without
memory: what each would hold, beside the planner.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from slm2_minimal.config import CHECKPOINTING, ParallelConfig, RunConfig
from slm2_minimal.distributed.parallel import build_on_meta
from slm2_minimal.distributed.world import World
from slm2_minimal.launch.memory import shard_ranks, state_bytes
from slm2_minimal.model.transformer import StableLM2

FULL, RANKS = RunConfig.preset("stablelm-2-1_6b"), 8
N = FULL.model.num_parameters()


@contextmanager
def one_of_eight(rank: int) -> Iterator[World]:
    """A rank whose messages go nowhere."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    try:
        yield World(torch.device("cpu"), rank, RANKS, RANKS, dist.group.WORLD)
    finally:
        dist.destroy_process_group()


@cache
def plain() -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {
            name: parameter.shape for name, parameter in StableLM2(FULL.model).named_parameters()
        }


def held(parallel: ParallelConfig, rank: int) -> int:
    """Bytes of this rank's parameters, all on the meta device; their names and whole
    shapes are those of the plain model.
    """
    with one_of_eight(rank) as world:
        model = build_on_meta(replace(FULL, parallel=parallel), world, torch.bfloat16)
        parameters = dict(model.named_parameters())
        assert {name: parameter.shape for name, parameter in parameters.items()} == plain()
        local = [
            parameter.to_local() if isinstance(parameter, DTensor) else parameter
            for parameter in parameters.values()
        ]
        assert all(tensor.is_meta for tensor in local)
        assert isinstance(model, FSDPModule) == (parallel.strategy != "ddp")
        return sum(tensor.nbytes for tensor in local)


@pytest.mark.parametrize("rank", [0, RANKS - 1])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp", "hybrid"])
def test_what_a_rank_holds_is_what_was_planned(
    strategy: Any, checkpointing: Any, rank: int
) -> None:
    """To the byte, because 8 divides every tensor's first dimension. zero1's shards are
    planned with the moments, of 4 and 8 bytes each.
    """
    parallel = ParallelConfig(
        strategy=strategy,
        checkpointing=checkpointing,
        shard_ranks=4 if strategy == "hybrid" else None,
    )
    shards = shard_ranks(replace(FULL, parallel=parallel), RANKS, strategy)
    assert shards == {"ddp": 1, "hybrid": 4}.get(strategy, 8)
    weights, _, optimizer = state_bytes(FULL.model, strategy, shards)
    found = held(parallel, rank)
    assert found == 4 * N // shards
    assert found == ((optimizer - 4 * len(plain())) / 3 if strategy == "zero1" else weights)


@pytest.mark.parametrize("rank", [0, RANKS - 1])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_tensor_parallelism(checkpointing: Any, rank: int) -> None:
    """Not planned, so by hand: the blocks' matrices and the biases of q, k and v are
    cut in eight, two times four; embedding, head and norms only among the four that
    share the shards.
    """
    cut_in_four = 2 * 100_352 * 2048 + 49 * 2 * 2048
    parallel = ParallelConfig(strategy="fsdp", tensor_parallel=2, checkpointing=checkpointing)
    assert held(parallel, rank) == 4 * (N - cut_in_four) // 8 + 4 * cut_in_four // 4
