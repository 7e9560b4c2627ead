"""Run a function of the page in several processes that talk over gloo.

A distributed run in small, on one machine and without a network. A fresh process cannot
import what a notebook defines, so cloudpickle sends the function by value, with all of
the page that it uses. What is unpickled was written a moment before by our own process,
into a folder that only this user can open.
"""

import datetime
import inspect
import linecache
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle


class RankError(RuntimeError):
    """A rank failed, or the ranks wait for each other for ever.

    One line, and the failing rank's traceback as a note.
    """


def run_ranks(
    function: Callable[[int, int], Any], size: int = 2, *, seconds: float = 240.0
) -> list[Any]:
    """What `function(rank, size)` returns on each of `size` ranks, in rank order.

    What they print comes in rank order, too. Each rank is a process with one thread and
    torch.distributed set up. None of them outlives the call.

    Raises RankError with the line and the error of the rank that failed first, or with
    the ranks that were not done after `seconds`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _pack(function, folder)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(size):
                processes.append(_start(folder, rank, size, seconds))
            _wait(processes, folder, seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for rank in range(size):
            print((folder / f"{rank}.out").read_text(encoding="utf-8"), end="")
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(size)]


def _pack(function: Callable[..., Any], folder: Path) -> None:
    """Write the function, and where the page's functions come from."""
    sources = {}
    for name, value in _functions(function).items():
        if value.__module__ == function.__module__:
            file = value.__code__.co_filename
            sources[name] = (file, linecache.getlines(file))

    module = sys.modules[function.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        (folder / "function").write_bytes(cloudpickle.dumps((function, sources)))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _unpack(folder: Path) -> tuple[Callable[..., Any], set[str]]:
    """The function, and the page's files.

    cloudpickle forgets where code comes from. It is put back, so that a traceback can
    quote the line that failed.
    """
    function, sources = pickle.loads((folder / "function").read_bytes())
    for name, value in _functions(function).items():
        if name in sources:
            file, lines = sources[name]
            value.__code__ = value.__code__.replace(co_filename=file)
            linecache.cache[file] = (0, None, lines, file)
    return function, {file for file, _ in sources.values()}


def _functions(function: Callable[..., Any]) -> dict[str, Any]:
    """`function` and all others that its page has defined or imported, by name."""
    names = function.__globals__ | {function.__name__: function}
    return {name: value for name, value in names.items() if inspect.isfunction(value)}


def _start(folder: Path, rank: int, size: int, seconds: float) -> "subprocess.Popen[bytes]":
    # Loopback needs neither a network nor a name of this machine that can be looked up.
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", __name__, str(folder), str(rank), str(size), str(seconds)]
    with (folder / f"{rank}.out").open("wb") as out, (folder / f"{rank}.err").open("wb") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | settings)


def _wait(processes: list["subprocess.Popen[bytes]"], folder: Path, seconds: float) -> None:
    """Return when all ranks have ended well; raise RankError as soon as one has not."""
    deadline = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            raise _first_failure(codes, folder)
        if None not in codes:
            return
        if time.monotonic() > deadline:
            late = ", ".join(str(rank) for rank, code in enumerate(codes) if code is None)
            raise RankError(
                f"rank {late}: not done after {seconds:g} s; does every rank make the same"
                " collective calls?"
            )
        time.sleep(0.02)


def _first_failure(codes: list[int | None], folder: Path) -> RankError:
    """The error of the rank that failed first: one whose peer is gone fails later."""
    # Killed, or out of memory: nothing could be written down
    for rank, code in enumerate(codes):
        if code and not (folder / f"{rank}.failure").exists():
            error_output = (folder / f"{rank}.err").read_text(encoding="utf-8", errors="replace")
            last = "".join(f": {line}" for line in error_output.strip().splitlines()[-1:])
            return RankError(f"rank {rank}: ended with exit code {code}{last}")

    first = min(folder.glob("*.failure"), key=lambda path: path.stat().st_mtime_ns)
    line, _, details = first.read_text(encoding="utf-8").partition("\n")
    error = RankError(f"rank {first.stem}{line}")
    error.add_note(details)
    return error


def _rank(folder: Path, rank: int, size: int, seconds: float) -> None:
    """A rank's whole life: meet the others, run, leave a result or what failed."""
    import torch.distributed as dist

    page: set[str] = set()
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'store'}",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=seconds),
        )
        function, page = _unpack(folder)
        result = cloudpickle.dumps(function(rank, size))
        (folder / f"{rank}.result").write_bytes(result)
        dist.destroy_process_group()
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        page_lines = [frame.line for frame in frames if frame.filename in page]
        where = f" at {page_lines[-1]!r}" if page_lines else ""
        message = f"{where}: {type(error).__name__}: {error}".splitlines()[0]
        text = f"{message}\n{traceback.format_exc()}"
        (folder / f"{rank}.failure").write_text(text, encoding="utf-8")
        raise


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
