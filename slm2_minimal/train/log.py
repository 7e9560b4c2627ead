"""What a run says of itself: lines on the terminal, `metrics.jsonl`, TensorBoard, W&B.

Lines go through `logging`, which `World.joined` silences on all ranks but the first.
Metrics are written by a `RunLog`, which writes nothing on other ranks.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import MissingExtraError, RunConfig
from slm2_minimal.distributed.device import peak_flops, peak_memory, synchronize
from slm2_minimal.distributed.parallel import Replica
from slm2_minimal.distributed.world import World
from slm2_minimal.files import whole_file
from slm2_minimal.model.flops import flops_per_token
from slm2_minimal.train.state import Best, RunState

logger = logging.getLogger(__name__)

FIRST_LINES = 3  # steps of a process that each have a line: one sees at once that it works


class RunLog:
    """The metrics of a run, each with the step after which it was taken."""

    def __init__(self) -> None:
        """A log that keeps nothing; `RunLog.opened` makes one that does."""
        self._file: Any = None
        self._board: Any = None
        self._tracker: Any = None

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, start_step: int, project: str | None, *, silent: bool
    ) -> Iterator["RunLog"]:
        """A log into `folder`, and into the W&B project where one is named.

        Lines of steps after `start_step` are dropped: a resumed run writes them again.
        A silent log, of a rank that does not speak for all, writes nothing. Raises
        MissingExtraError where `project` is given and wandb is not installed.
        """
        log = cls()
        if silent:
            yield log
            return

        from torch.utils.tensorboard import SummaryWriter

        with ExitStack() as stack:
            if project is not None:
                log._tracker = _wandb_run(folder, project)
                stack.callback(log._tracker.finish)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "metrics.jsonl"
            _drop_lines_after(path, start_step or -1)  # at 0, of a run that left nothing, all
            board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
            log._board = stack.enter_context(board)
            log._file = stack.enter_context(path.open("a", encoding="utf-8", buffering=1))
            yield log

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """One JSONL line; its values also go to TensorBoard and W&B as `kind/name`."""
        if self._file is None:
            return
        record = {"step": step, "kind": kind, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

        flat = dict(_flatten(values, kind))
        for name, value in flat.items():
            if isinstance(value, str):
                self._board.add_text(name, value, step)
            else:
                self._board.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.log({"step": step, **flat})


def _drop_lines_after(path: Path, step: int) -> None:
    """Drop lines of later steps, and one that a crash cut short."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    if lines[-1] and _step_of(lines[-1]) == math.inf:
        logger.warning("%s: the last line was cut short, and is dropped", path)
    kept = [line for line in lines if _step_of(line) <= step]
    with whole_file(path) as file:
        file.writelines((line + "\n").encode() for line in kept)


def _step_of(line: str) -> float:
    """The step of a JSONL line; infinite for what is none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _wandb_run(folder: Path, project: str) -> Any:
    """The run of W&B under the folder's name; a resumed run goes on with it.

    The step is a value of ours, because after a rewind it goes back.
    """
    try:
        import wandb
    except ImportError:
        raise MissingExtraError("wandb", "wandb", f"train.wandb = {project!r}") from None
    folder.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    run = wandb.init(
        project=project, name=folder.name, id=identity, resume="allow", dir=str(folder)
    )
    run.define_metric("*", step_metric="step")
    return run


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """`{"loss": {"en": 1.0}}` as `loss/en`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}/{name}")
        else:
            yield f"{prefix}/{name}", value


class Progress:
    """Times the steps of one process, and says how the run goes."""

    def __init__(self, config: RunConfig, step: int, ranks: int, dtype: torch.dtype) -> None:
        self.config, self.ranks, self.dtype = config, ranks, dtype
        self.steps = 0  # made by this process
        self._first_step = step
        self._started = time.perf_counter()
        self._since = time.perf_counter()  # when the interval between two lines began
        self._losses: list[float] = []  # of its steps

    def count(self, loss: float) -> None:
        self.steps += 1
        self._losses.append(loss)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Validation and saving are no training time."""
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin

    def measure(self, step: int, device: torch.device) -> dict[str, float]:
        """The interval since the last call: mean loss, speed, memory, tokens so far."""
        synchronize(device)
        train, data = self.config.train, self.config.data
        seconds = time.perf_counter() - self._since
        speed = len(self._losses) * train.global_batch_tokens / seconds
        flops = speed * flops_per_token(self.config.model, data.seq_len)
        values = {
            "mean_loss": sum(self._losses) / len(self._losses),
            "tokens_per_second": speed,
            "tokens_per_second_per_rank": speed / self.ranks,
            "share_of_peak": flops / (self.ranks * peak_flops(device, self.dtype)),
            "memory_gb": peak_memory(device) / 1e9,
            "tokens": step * train.global_batch_tokens,
        }
        self._since = time.perf_counter()
        self._losses = []
        return values

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """`step 120/600 | loss 4.123 | mean 4.2 | ...` for the terminal."""
        steps = self.config.train.steps
        per_step = (time.perf_counter() - self._started) / max(1, step - self._first_step)
        minutes, seconds = divmod(round(per_step * (steps - step)), 60)
        columns = (
            f"step {step:>{len(str(steps))}}/{steps}",
            f"loss {values['loss']:.3f}",
            f"mean {values['mean_loss']:.3f}",
            f"lr {values['lr']:.2e}",
            f"grad norm {values['grad_norm']:.2f}",
            f"{values['tokens_per_second']:,.0f} tokens/s",
            f"{values['share_of_peak']:.0%} of peak",
            f"{minutes}:{seconds:02d} left",
        )
        return " | ".join(columns)


def introduction(config: RunConfig, replica: Replica, state: RunState, world: World) -> str:
    """What is trained, on what, in which batches, and where it goes."""
    train, seq_len = config.train, config.data.seq_len
    where = str(world.device)
    ranks = ""
    if world.size > 1:
        where = f"{world.size} x {world.device.type} ({replica.strategy})"
        ranks = f"{replica.data_size} x "

    # how a batch is cut, and what is left to do
    per_rank = train.global_batch_tokens // replica.data_size
    accumulation = per_rank // (train.micro_batch_size * seq_len)
    text = (
        f"{config.model.num_parameters():,} parameters in {state.dtype} on {where}; "
        f"{train.steps} steps of {train.global_batch_tokens:,} tokens = {ranks}{accumulation} "
        f"micro-batches of {train.micro_batch_size} x {seq_len}; into {train.output_dir}"
    )
    if state.step:
        text += f"\ngoing on after step {state.step}"
    if state.step > train.steps:
        text += f": more than train.steps = {train.steps}, so nothing is left to train"
    return text


def validation_line(losses: Mapping[str, float], mean: float) -> str:
    """The loss of every language, and their mean."""
    per_language = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    return f"validation | {per_language} | mean {mean:.3f}"


def best_table(best: Best, unigram: Mapping[str, float]) -> str:
    """The best checkpoint's losses beside those of a model that knows no context."""
    lines = [
        f"best checkpoint: step {best.step}, mean validation loss {best.mean:.3f} nats per token",
        "language   model  unigram   below",
    ]
    for name, loss in best.losses.items():
        gain = unigram[name] - loss
        lines.append(f"{name:<8} {loss:>7.3f} {unigram[name]:>8.3f} {gain:>7.3f}")
    return "\n".join(lines)
