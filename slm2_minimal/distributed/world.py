"""The processes of a run: who this one is, and the few numbers they tell each other.

torchrun says who is who in the environment (RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE). Without it there is one process and nothing of torch.distributed is
started. Training's own collectives are in parallel.py.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from slm2_minimal.config import ConfigError
from slm2_minimal.distributed.device import pick_device

# How long a collective waits for a rank
FIRST_TIMEOUT = timedelta(minutes=30)  # the first step compiles and connects
LATER_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class World:
    """One process of `size`; `local_size` of them share this machine."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1
    group: dist.ProcessGroup | None = None  # speaks over gloo; None: nothing is started
    meshes: list[DeviceMesh] = field(default_factory=list)  # those that `mesh` made

    @classmethod
    @contextmanager
    def joined(cls, device: str = "auto") -> Iterator["World"]:
        """The world of this process, with a GPU of its own where there are any.

        Raises ConfigError for a device that is not there.
        """
        chosen = pick_device(device)
        place = _place()
        if place is None:
            yield cls(chosen)
            return

        # Who this process is, and its GPU
        rank, size, local = place
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        if chosen.type == "cuda":
            if local >= torch.cuda.device_count():
                raise ConfigError(
                    f"train.device = {device!r}: local rank {local} has no GPU of its own among"
                    f" {torch.cuda.device_count()}; start at most that many processes on a node"
                )
            chosen = torch.device("cuda", local)
            torch.cuda.set_device(chosen)

        # Meet the others
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            store=_store(rank, size),
            rank=rank,
            world_size=size,
            timeout=FIRST_TIMEOUT,
        )
        group = dist.new_group(backend="gloo", timeout=FIRST_TIMEOUT)
        logger = logging.getLogger("slm2_minimal")
        level = logger.level
        if rank > 0:
            logger.setLevel(logging.ERROR)  # the first speaks for all
        yield cls(chosen, rank, size, local_size, group)
        logger.setLevel(level)
        # Not after an error: it may wait for ranks that wait for this one.
        dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value added up over all processes, in fp64 and the same on each."""
        if self.group is None:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in order of rank, on each."""
        values = [value] * self.size
        if self.group is not None:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.sum(0)

    def mesh(self, shape: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
        """All ranks as an array with named dimensions, each with its groups."""
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        self.meshes.append(mesh)
        return mesh

    def shorten_timeouts(self, timeout: timedelta = LATER_TIMEOUT) -> None:
        """After the first step: have a dead or stuck rank noticed after `timeout`.

        Holds for the default group, `group` and every `mesh`. gloo then raises
        RuntimeError, NCCL ends the process. The group that writes checkpoints keeps its
        own timeout, for a slow disk is no dead rank.
        """
        if self.group is None:
            return
        groups = [self.group, dist.group.WORLD]
        for mesh in self.meshes:
            groups += mesh.get_all_groups()
        for group in groups:
            assert group is not None, "joined"
            group.set_timeout(timeout)


def _place() -> tuple[int, int, int] | None:
    """(rank, world size, local rank) as the launcher says; None for one by itself.

    Raises ConfigError for half of a launcher's variables, and under srun without one.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in os.environ:
        # Of a job's own script, too, SLURM_NTASKS may be more than one.
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks != "1":
            raise ConfigError(
                f"SLURM_STEP_NUM_TASKS = {tasks}: srun started several processes that know "
                "nothing of each other; start one torchrun a node, as slm2 launch's script does"
            )
        return None

    values = {name: os.environ.get(name, "") for name in names}
    for name, value in values.items():
        if not value.isdecimal():
            raise ConfigError(
                f"{name} = {value!r}: must be a whole number where RANK is set; let torchrun set "
                f"{', '.join(names)} and MASTER_ADDR, or unset them"
            )
    rank, size, local = (int(value) for value in values.values())
    if rank >= size:
        raise ConfigError(f"RANK = {rank}: must lie below WORLD_SIZE = {size}; use torchrun")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ConfigError(f"{name} is not set where RANK is; use torchrun, or unset RANK")
    return rank, size, local


def _store(rank: int, size: int) -> Store:
    """Where the processes find each other.

    torchrun keeps its store when it starts them again, and in it the addresses of those
    that died; hence a part of the store for each attempt. Agents on several nodes count
    attempts differently: there, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes a new store
    each time.
    """
    store, _, _ = next(rendezvous("env://", rank, size))
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt {attempt}", store)
