"""Processes that share the items of one stage, with lines of progress in the log."""

import contextlib
import gc
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_BETWEEN_LINES = 2.0
SECONDS_OF_SILENCE = 5.0  # where no item is completed

log = logging.getLogger(__name__)


def in_parallel(
    stage: str,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    so_far: Callable[[], str] = str,
) -> list[Result]:
    """`work(item)` for all items, in so many processes (0: one per core).

    While a long item is under way, `so_far()` ends the lines of progress.

    Raises what the first failing call raised, or RuntimeError where a process was
    killed. Calls that are under way are ended: what they leave is whole or absent.
    """
    workers = min(workers or os.cpu_count() or 1, len(items))
    sizes = [getattr(item, "size", 0) for item in items]

    # What is done so far
    completed = queue.SimpleQueue[Future[Result]]()
    number = 0
    size_done = 0
    started = shown = time.perf_counter()

    # Results as they come, and a line now and then
    with ProcessPoolExecutor(workers, initializer=_begin_worker, initargs=(os.getpid(),)) as pool:
        futures = {pool.submit(work, item): size for item, size in zip(items, sizes, strict=True)}
        try:
            for future in futures:
                future.add_done_callback(completed.put)
            while number < len(items):
                with contextlib.suppress(queue.Empty):
                    future = completed.get(timeout=SECONDS_OF_SILENCE)
                    future.result()
                    number += 1
                    size_done += futures[future]
                now = time.perf_counter()
                last = number == len(items)
                if now - shown > SECONDS_BETWEEN_LINES or last:
                    line = f"{stage:<8} | {number} of {len(items)}"
                    line += _speed(size_done, sum(sizes), now - started)
                    log.info(line if last else line + so_far())
                    shown = now
        except BaseException as error:
            for process in list(pool._processes.values()):  # Python 3.14: terminate_workers()
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise RuntimeError(
                    "a worker process died, perhaps out of memory; run the same again, with fewer"
                    " prepare.workers"
                ) from None
            raise
    return [future.result() for future in futures]


def _begin_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it, also where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Modules that were forked with it stay: a search for garbage in them takes 0.1 s.
    gc.freeze()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _speed(size_done: int, size: int, seconds: float) -> str:
    """The end of a line of progress, where the items have sizes in bytes."""
    if not size:
        return ""
    left = seconds * (size - size_done) / max(size_done, 1)
    megabytes = size_done / 1e6
    speed = f"{megabytes:,.1f} MB | {megabytes / max(seconds, 1e-9):,.1f} MB/s"
    return f" | {speed} | {left // 60:.0f}:{left % 60:02.0f} left"
