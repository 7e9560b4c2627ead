"""PLACE: say what this is."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from slm2_minimal.prepare.units import Unit
from slm2_minimal.prepare.work import Job

Result = TypeVar("Result")


Say = Callable[[str], None]


SECONDS_BETWEEN_LINES = 2.0


def in_parallel(
    job: Job, stage: str, work: Callable[[Job, Any], Result], items: Sequence[str | Unit], say: Say
) -> list[Result]:
    """`work(job, item)` for all items, in processes, with a line of progress now and
    then; the results in the items' order.

    Raises what the first failing call raised; calls that are under way are ended, since
    what they leave is whole or absent.
    """
    workers = min(job.config.workers or os.cpu_count() or 1, len(items))
    size, started, shown = (
        sum(getattr(item, "size", 0) for item in items),
        time.perf_counter(),
        time.perf_counter(),
    )
    with ProcessPoolExecutor(workers, initializer=_begin_worker, initargs=(os.getpid(),)) as pool:
        futures = {pool.submit(work, job, item): item for item in items}
        finished = 0
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                finished += getattr(futures[future], "size", 0)
                now = time.perf_counter()
                if now - shown > SECONDS_BETWEEN_LINES or number == len(items):
                    say(_progress(stage, number, len(items), finished, size, now - started))
                    shown = now
        except BaseException:
            for process in list(
                pool._processes.values()
            ):  # from Python 3.14 on, pool.terminate_workers()
                process.terminate()
            raise
    return [future.result() for future in futures]


def _begin_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it, also where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the modules that were forked with it stay: looking through them for garbage costs
    # every worker a tenth of a second
    gc.freeze()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _progress(stage: str, number: int, items: int, finished: int, size: int, seconds: float) -> str:
    line = f"{stage:<8} | {number} of {items}"
    if size:
        left = seconds * (size - finished) / max(finished, 1)
        line += (
            f" | {finished / 1e6:,.1f} MB | {finished / 1e6 / max(seconds, 1e-9):,.1f} MB/s |"
            f" {left // 60:.0f}:{left % 60:02.0f} left"
        )
    return line
