"""What the planner says a step holds against what real ranks hold in one: every
strategy, with and without checkpointing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter
from torch.utils._python_dispatch import _disable_current_modes

from slm2_minimal.config import (
    CHECKPOINTING,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from slm2_minimal.data.loader import Batch
from slm2_minimal.distributed.device import peak_memory
from slm2_minimal.distributed.parallel import parallelize
from slm2_minimal.distributed.world import World
from slm2_minimal.launch.memory import memory, shard_ranks, state_bytes
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients
from slm2_minimal.train.step import accumulate_gradients

STATES, ACTIVATIONS, VOCABULARY = (
    (512, 128, 4, 1, 32),
    (512, 64, 4, 4, 128),
    (16_384, 64, 1, 1, 64),
)  # what weighs most
LARGE = (8192, 256, 4, 2, 256)  # vocabulary, width, layers, rows, length
INDICES = 32  # bytes per token of ids, labels, positions and documents


def run_of(
    shape: tuple[int, ...],
    strategy: str,
    kind: str = "none",
    dtype: Any = "bfloat16",
    accumulation: int = 2,
) -> RunConfig:
    """A run on two ranks, for hybrid on two times two. Every tensor divides among
    them.
    """
    vocab, channels, layers, rows, length = shape
    model = ModelConfig(
        vocab_size=vocab,
        hidden_size=channels,
        intermediate_size=channels * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    batch = rows * length * accumulation * (4 if strategy == "hybrid" else 2)
    parallel: dict[str, Any] = {
        "strategy": strategy,
        "checkpointing": kind,
        "shard_ranks": 2 if strategy == "hybrid" else None,
    }
    train = TrainConfig(micro_batch_size=rows, global_batch_tokens=batch, dtype=dtype, device="cpu")
    return RunConfig(
        model=model,
        data=DataConfig(seq_len=length),
        train=train,
        parallel=ParallelConfig(**parallel),
    )


class Untracked(DefaultReduceScatter):
    """gloo reduces in a copy of its input; NCCL, which is planned for, makes none."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with _disable_current_modes():
            return super().__call__(*arguments, **options)


def measured(world: World, tables: dict[str, Any]) -> dict[str, int]:
    """Bytes of live tensors in a step: the most (peak), weights and moments before it
    (states), all before its last micro-batch (between).

    Everything is tracked from the model's first tensor on. The step is the second, or
    the third under DDP, which makes its buckets anew in the second. Also what the
    process's resident memory grew by at most.
    """
    run, tracker, resident = RunConfig.from_dict(tables), MemTracker(), peak_memory(world.device)
    rows, length, strategy = run.train.micro_batch_size, run.data.seq_len, run.parallel.strategy
    found: dict[str, int] = {}
    torch.manual_seed(world.rank)

    def now(when: str = "current") -> dict[str, int]:
        return {
            getattr(key, "value", key): size
            for key, size in tracker.get_tracker_snapshot(when)[world.device].items()
        }

    @contextmanager
    def around(last: bool) -> Iterator[None]:
        tracker.reset_mod_stats()  # else it refuses to see the model called again
        found["between"] = now()["Total"]
        with replica.micro_batch(last):
            yield

    def batch() -> Batch:
        ids, positions = (
            torch.randint(run.model.vocab_size, (rows, length)),
            torch.arange(length).repeat(rows, 1),
        )
        return Batch(ids, ids.clone(), positions, torch.zeros_like(positions))

    with tracker:
        replica = parallelize(run, world, getattr(torch, str(run.train.dtype)))
        for module in replica.model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(Untracked())
        optimizer = build_optimizer(replica.model, run.optimizer)
    micro_batches = run.train.global_batch_tokens // (rows * length * world.size)
    for _ in range(3 if strategy == "ddp" else 2):
        found["states"] = now()["Parameter"] + now()["Optstate"]
        with tracker:
            batches = [batch() for _ in range(micro_batches)]
            accumulate_gradients(
                replica.forward, batches, dtype=replica.autocast_dtype, context=around
            )
            clip_gradients(replica.model.parameters(), run.optimizer.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=replica.strategy != "ddp")
            del batches
    return found | {"peak": now("peak")["Total"], "resident": peak_memory(world.device) - resident}


def check(ranks: Any, run: RunConfig) -> None:
    """The peak of every rank within a twentieth; weights, gradients and moments to the
    byte.
    """
    strategy, tokens, bf16 = (
        run.parallel.strategy,
        run.train.micro_batch_size * run.data.seq_len,
        run.train.dtype == "bfloat16",
    )
    size = 4 if strategy == "hybrid" else 2
    micro_batches = run.train.global_batch_tokens // (tokens * size)
    planned = memory(run, size, strategy, run.parallel.checkpointing).total
    shards = shard_ranks(run, size, strategy)
    weights, gradients, optimizer = state_bytes(
        run.model, strategy, shards, bf16=bf16, accumulates=micro_batches > 1
    )
    for found in ranks(size, measured, run.to_dict()):
        print(
            f"\n{strategy}: {planned / 1e6:.1f} MB planned, {found['peak'] / 1e6:.1f} measured;"
            f" resident {found['resident'] / 1e6:.1f} more"
        )
        assert planned == pytest.approx(found["peak"], rel=0.05)
        assert found["states"] == optimizer + (
            weights if strategy != "zero1" else 0
        )  # zero1 gathers weights in a step
        if micro_batches > 1:
            scalars = (
                found["between"]
                - micro_batches * tokens * INDICES
                - (weights + gradients + optimizer)
            )
            assert 0 <= scalars < 64, "losses and their like"


STRATEGIES = ["ddp", "zero1", "fsdp", "hybrid"]


@pytest.mark.parametrize("kind", CHECKPOINTING)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mostly_activations(strategy: str, kind: str, ranks: Any) -> None:
    check(ranks, run_of(ACTIVATIONS, strategy, kind))


@pytest.mark.parametrize("kind", ["none", "full"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mostly_states(strategy: str, kind: str, ranks: Any) -> None:
    check(ranks, run_of(STATES, strategy, kind))


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp"])
def test_mostly_vocabulary(strategy: str, ranks: Any) -> None:
    check(ranks, run_of(VOCABULARY, strategy))


@pytest.mark.parametrize("shape", [STATES, ACTIVATIONS], ids=["states", "activations"])
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp"])
def test_without_accumulation(strategy: str, shape: tuple[int, ...], ranks: Any) -> None:
    """No gradients are there from before, so the worst moment may be another."""
    check(ranks, run_of(shape, strategy, accumulation=1))


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp"])
def test_in_fp32(strategy: str, ranks: Any) -> None:
    check(ranks, run_of(ACTIVATIONS, strategy, dtype="float32"))


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp"])
def test_resident_memory_beside_it(strategy: str, ranks: Any) -> None:
    """Printed, not compared: it says something in processes that nothing else has run
    in, one test by itself with -s.
    """
    check(ranks, run_of(LARGE, strategy))
