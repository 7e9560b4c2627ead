"""What a run says of itself: FLOPs, memory, a progress line, a JSONL file, TensorBoard,
W&B, and a trace of a few steps.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import MissingExtraError


class RunLog:
    """What the first rank writes into a run's folder: metrics.jsonl, TensorBoard files,
    and Weights & Biases where a project is named.

    Lines of steps after `start_step`, which a resumed run writes again, are dropped.
    """

    def __init__(self, folder: Path, start_step: int, project: str | None = None) -> None:
        """Raises MissingExtraError where `project` is given and wandb is not
        installed.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.tracker = _wandb_run(folder, project) if project is not None else None
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = [
                line
                for line in self.path.read_text(encoding="utf-8").split("\n")
                if _step(line) <= start_step
            ]
            part = self.path.with_suffix(".part")
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(part, self.path)
        self.file = self.path.open("a", encoding="utf-8", buffering=1)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """One JSONL line; its numbers also go to TensorBoard and W&B under `kind/name`,
        texts as texts.
        """
        self.file.write(
            json.dumps({"step": step, "kind": kind, **values}, ensure_ascii=False) + "\n"
        )
        flat = dict(_flatten(values, kind))
        for name, value in flat.items():
            if isinstance(value, str):
                self.board.add_text(name, value, step)
            else:
                self.board.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.log({"step": step, **flat})

    def close(self) -> None:
        """Flush and close all of them."""
        self.file.close()
        self.board.close()
        if self.tracker is not None:
            self.tracker.finish()


def _wandb_run(folder: Path, project: str) -> Any:
    """The run of W&B under the folder's name; a resumed run goes on with it. The step
    is a value of ours: after a rewind it goes back.
    """
    try:
        import wandb
    except ImportError:
        raise MissingExtraError("wandb", "wandb", f"train.wandb = {project!r}") from None
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    run = wandb.init(project=project, name=folder.name, id=name, resume="allow", dir=str(folder))
    run.define_metric("*", step_metric="step")
    return run


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """`{"loss": {"en": 1.0}}` as `loss/en`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}/{name}")
        else:
            yield f"{prefix}/{name}", value


def _step(line: str) -> float:
    """The step of a JSONL line; infinite for one that a crash cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class StepTrace:
    """A trace of TRACED steps from `first` on, into `folder`, for a browser's trace
    viewer; the longest operators as text beside it.
    """

    TRACED = 3

    def __init__(self, folder: Path, first: int | None, device: torch.device) -> None:
        self.folder, self.first, self.device = folder, first, device
        self.profiler: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Called before the step numbered `step`, counted from 0."""
        if step == self.first and self.profiler is None:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self.profiler = torch.profiler.profile(activities=kinds)
            self.profiler.start()

    def after(self, step: int) -> Path | None:
        """Called after it; the trace's path once it is written."""
        if self.profiler is None or self.first is None or step < self.first + self.TRACED - 1:
            return None
        self.profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{self.first:08d}.json.gz"
        self.profiler.export_chrome_trace(str(path))
        key = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        path.with_suffix("").with_suffix(".txt").write_text(
            self.profiler.key_averages().table(sort_by=key, row_limit=40) + "\n"
        )
        self.profiler, self.first = None, None
        return path


def progress_line(step: int, steps: int, values: dict[str, float], seconds_left: float) -> str:
    """`step 120/600 | loss 4.123 | rate 2.53e-03 | ...`, the same columns at every
    step.
    """
    minutes, seconds = divmod(round(seconds_left), 60)
    return (
        f"step {step:>{len(str(steps))}}/{steps} | loss {values['loss']:.3f} | rate"
        f" {values['rate']:.2e} | grad norm {values['grad_norm']:.2f} |"
        f" {values['tokens_per_second']:,.0f} tokens/s | {values['share_of_peak']:.0%} of peak |"
        f" {minutes}:{seconds:02d} left"
    )
