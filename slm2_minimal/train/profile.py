"""A trace of a few steps, for a browser's trace viewer (`train.profile_step`)."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import profile, schedule

TRACED_STEPS = 3

logger = logging.getLogger(__name__)


@contextmanager
def traced(
    run_dir: Path, first: int | None, step: int, device: torch.device
) -> Iterator[Callable[[], None]]:
    """What to call after every step of the block, which begins at `step`.

    TRACED_STEPS steps from `first` on are written to `profile/` in the run's folder,
    with the longest operators as text beside them. Nothing is, where `first` is None or
    lies behind.
    """
    if first is None or first < step:
        yield lambda: None
        return

    path = run_dir / "profile" / f"step-{first:08d}.json.gz"

    def write(finished: profile) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(path))
        longest = f"self_{device.type}_time_total"
        table = finished.key_averages().table(sort_by=longest, row_limit=40)
        path.with_suffix("").with_suffix(".txt").write_text(table + "\n")
        logger.info("trace of %d steps: %s", TRACED_STEPS, path)

    # The profiler warms up in the step before the first that is traced.
    skipped = first - step
    warmup = min(1, skipped)
    plan = schedule(
        skip_first=skipped - warmup, wait=0, warmup=warmup, active=TRACED_STEPS, repeat=1
    )
    with profile(schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
