"""Run a function of the page in several processes that talk over gloo: a distributed
run in small, on one machine and without a network.

A fresh process cannot import a function that a notebook defines. So its source goes
there, with everything of the page that it uses: modules by name, functions and classes
of the page by their source, all other values as copies.
"""

import ast
import datetime
import inspect
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class RankError(RuntimeError):
    """A rank failed, or the ranks wait for each other for ever: one line, and the
    failing rank's traceback as a note.
    """


def run_ranks(
    function: Callable[[int, int], Any], size: int = 2, *, seconds: float = 240.0
) -> list[Any]:
    """What `function(rank, size)` returns on each of `size` ranks, in rank order; what
    they print comes in rank order, too.

    Each rank is a process with one thread and torch.distributed set up. None of them
    outlives the call, whether it ends well or not.

    Raises:
        RankError: the first rank that failed, with its line and its error, or ranks
        that were not done after `seconds`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _pack(function, folder)
        # Loopback needs neither a network nor a name of this machine that can be looked
        # up.
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": loopback,
            "PYTHONIOENCODING": "utf-8",
        }
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(size):
                command = [
                    sys.executable,
                    "-m",
                    __name__,
                    scratch,
                    str(rank),
                    str(size),
                    str(seconds),
                ]
                with (
                    (folder / f"{rank}.out").open("wb") as out,
                    (folder / f"{rank}.err").open("wb") as err,
                ):
                    processes.append(
                        subprocess.Popen(command, stdout=out, stderr=err, env=environment)
                    )
            _wait(processes, folder, seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for rank in range(size):
            print((folder / f"{rank}.out").read_text(encoding="utf-8"), end="")
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(size)]


def _pack(function: Callable[..., Any], folder: Path) -> None:
    """Write what a rank needs: the sources, and the values that they use."""
    modules: dict[str, str] = {}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def add(thing: Any) -> None:
        sources[thing.__name__] = textwrap.dedent(inspect.getsource(thing))
        used = {
            node.id
            for node in ast.walk(ast.parse(sources[thing.__name__]))
            if isinstance(node, ast.Name)
        }
        for name in sorted(used & function.__globals__.keys()):
            value = function.__globals__[name]
            if inspect.ismodule(value):
                modules[name] = f"import {value.__name__} as {name}\n"
            elif (
                not (inspect.isfunction(value) or inspect.isclass(value))
                or value.__module__ != function.__module__
            ):
                values[name] = value
            elif name not in sources:
                add(value)

    add(function)
    (folder / "page.py").write_text(
        "".join(modules.values()) + "\n\n".join(reversed(sources.values())), encoding="utf-8"
    )
    (folder / "values").write_bytes(pickle.dumps((function.__name__, values)))


def _wait(processes: list["subprocess.Popen[bytes]"], folder: Path, seconds: float) -> None:
    """Return when all ranks have ended well. Raises RankError as soon as one has not,
    or when the time is up.
    """
    deadline = time.monotonic() + seconds
    while any(codes := [process.poll() for process in processes]) or None in codes:
        if any(codes):
            raise _first_failure(codes, folder)
        if time.monotonic() > deadline:
            late = ", ".join(str(rank) for rank, code in enumerate(codes) if code is None)
            raise RankError(
                f"rank {late}: not done after {seconds:g} s; does every rank make the same"
                " collective calls?"
            )
        time.sleep(0.02)


def _first_failure(codes: list[int | None], folder: Path) -> RankError:
    """The error of the rank that failed first: a rank whose peer is gone fails as well,
    and later.
    """
    for rank, code in enumerate(codes):
        if (
            code and not (folder / f"{rank}.failure").exists()
        ):  # killed, or out of memory: nothing could be written down
            said = (
                (folder / f"{rank}.err")
                .read_text(encoding="utf-8", errors="replace")
                .strip()
                .splitlines()
            )
            return RankError(
                f"rank {rank}: ended with exit code {code}" + (f": {said[-1]}" if said else "")
            )
    first = min(folder.glob("*.failure"), key=lambda path: path.stat().st_mtime_ns)
    line, _, details = first.read_text(encoding="utf-8").partition("\n")
    error = RankError(f"rank {first.stem}{line}")
    error.add_note(details)
    return error


def _rank(folder: Path, rank: int, size: int, seconds: float) -> None:
    """A rank's whole life: meet the others, run, and leave behind a result, or a line
    that says what failed.
    """
    import torch.distributed as dist

    page = str(folder / "page.py")
    try:
        meeting = f"file://{folder / 'store'}"
        wait = datetime.timedelta(seconds=seconds)
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=size, timeout=wait
        )
        name, values = pickle.loads((folder / "values").read_bytes())
        names = {"__name__": "__main__", **values}
        exec(compile(Path(page).read_text(encoding="utf-8"), page, "exec"), names)
        result = names[name](rank, size)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
        dist.destroy_process_group()
    except BaseException as error:
        lines = [
            frame.line
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == page
        ]
        where = f" at {lines[-1]!r}" if lines else ""
        message = f"{where}: {type(error).__name__}: {error}".splitlines()[0]
        (folder / f"{rank}.failure").write_text(
            f"{message}\n{traceback.format_exc()}", encoding="utf-8"
        )
        raise


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
