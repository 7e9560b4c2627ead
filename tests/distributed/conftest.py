"""Ranks for tests: processes that import torch once, wait for work, and speak gloo with
each other. None outlives the tests.
"""

import importlib.util
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch

from slm2_minimal.distributed.world import World

SECONDS = 120  # for one piece of work


class Ranks:
    """`ranks(2, function, *arguments)` calls a module's function with the World of each
    of 2 ranks first, and returns what all returned.
    """

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.workers = []
        for _ in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.workers.append((process, mine))

    def __call__(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = (function.__code__.co_filename, function.__qualname__)
        for rank, (_, pipe) in enumerate(self.workers[:size]):
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "LOCAL_WORLD_SIZE": size,
                "MASTER_PORT": port,
            }
            pipe.send((place, arguments, {key: str(value) for key, value in environment.items()}))
        answers: dict[Connection, Any] = {}
        waiting = [pipe for _, pipe in self.workers[:size]]
        while waiting:
            ready = wait(waiting, timeout=SECONDS)
            if not ready:
                self.end()
                pytest.fail(
                    f"{place[1]}: {len(waiting)} of {size} ranks had not answered after {SECONDS} s"
                )
            for pipe in ready:
                rank = [each for _, each in self.workers].index(pipe)
                try:
                    ok, answer = pipe.recv()
                except EOFError:  # it died in native code
                    process = self.workers[rank][0]
                    process.join()
                    self.end()
                    pytest.fail(f"rank {rank} died with exit code {process.exitcode}")
                if not ok:
                    self.end()  # the others may wait for it for ever
                    pytest.fail(f"rank {rank}:\n{answer}")
                answers[pipe] = answer
                waiting.remove(pipe)
        return [answers[pipe] for _, pipe in self.workers[:size]]

    def end(self) -> None:
        """Kill all."""
        for process, pipe in self.workers:
            process.kill()
            process.join()
            pipe.close()

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process, _ in self.workers)


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    modules: dict[str, Any] = {}
    while True:
        try:
            (file, name), arguments, environment = pipe.recv()
        except EOFError:
            return
        os.environ.update(environment)
        try:
            if file not in modules:
                spec = importlib.util.spec_from_file_location(Path(file).stem, file)
                assert spec is not None
                assert spec.loader is not None
                modules[file] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(modules[file])
            with World.joined("cpu") as world:
                answer = getattr(modules[file], name)(world, *arguments)
            pipe.send((True, answer))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


_pool: list[Ranks] = []


@pytest.fixture
def ranks() -> Ranks:
    """The four ranks of the session; new ones after a failure."""
    if not _pool or not _pool[-1].alive:
        _pool.append(Ranks(4))
    return _pool[-1]


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    for pool in _pool:
        pool.end()
    assert multiprocessing.active_children() == []
