"""After the first step, a rank that does not answer is noticed soon."""

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from slm2_minimal.distributed.checkpoint import Checkpointer
from slm2_minimal.distributed.world import World

SLEEP = 4.0


def waits(world: World, kind: str, seconds: float) -> tuple[str, float]:
    """What a collective says while the other rank sleeps, and after how long."""
    mesh = world.mesh((1, 2), ("shard", "tensor"))
    tensor = torch.ones(1)
    dist.all_reduce(tensor, group=mesh.get_group("tensor"))
    world.shorten_timeouts(timedelta(seconds=seconds))
    if world.rank == 1:
        time.sleep(SLEEP)
    started = time.monotonic()
    try:
        if kind == "world":
            world.barrier()
        else:
            dist.all_reduce(tensor, group=mesh.get_group("tensor") if kind == "mesh" else None)
    except RuntimeError as error:
        return str(error), time.monotonic() - started
    return "", time.monotonic() - started


@pytest.mark.parametrize("kind", ["world", "default", "mesh"])
def test_a_rank_that_sleeps_makes_the_other_fail(kind: str, ranks: Any) -> None:
    """In the group of the few numbers, in the default one, and in one of a mesh."""
    [(message, seconds), _] = ranks(2, waits, kind, 0.5)
    assert "Timed out waiting 500ms" in message
    assert seconds < SLEEP


def test_a_rank_that_is_merely_late_does_not(ranks: Any) -> None:
    assert [message for message, _ in ranks(2, waits, "mesh", 60.0)] == ["", ""]


def writes(world: World, folder: str) -> bool:
    """Whether the group of a checkpoint outlasts the shortened timeouts."""
    checkpointer = Checkpointer(folder, world, 1)  # type: ignore[arg-type]
    world.shorten_timeouts(timedelta(seconds=0.5))
    if world.rank == 1:
        time.sleep(2.0)
    dist.all_reduce(torch.ones(1), group=checkpointer._writers.group)
    return True


def test_a_slow_disk_is_no_dead_rank(ranks: Any, tmp_path: Any) -> None:
    assert ranks(2, writes, str(tmp_path)) == [True, True]


def test_one_process_has_nothing_to_shorten() -> None:
    World(torch.device("cpu")).shorten_timeouts()
