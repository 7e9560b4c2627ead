"""Garbage collection when it suits: where it strikes one rank, all others wait."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

COLLECT_EVERY = 50  # steps


@contextmanager
def collecting_by_hand() -> Iterator[Callable[[], object]]:
    """What collects young garbage; nothing else does inside the block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield partial(gc.collect, 1)
    finally:
        if was_enabled:
            gc.enable()
