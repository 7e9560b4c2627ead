"""The log of a run in its three forms, the trace, and the numbers that stand in
them.
"""

import gzip
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slm2_minimal.config import MissingExtraError, RunConfig
from slm2_minimal.train.log import Progress, RunLog, best_table
from slm2_minimal.train.state import Best
from slm2_minimal.train.trainer import Trainer

Make = Callable[..., RunConfig]


def records(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().rstrip("\n").split("\n")
    ]


def opened(folder: Path, start_step: int = 0, project: str | None = None) -> Any:
    return RunLog.opened(folder, start_step, project, silent=False)


def test_one_line_in_both_files(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.write(3, "validation", {"loss": {"en": 1.5, "de": 2.5}, "mean": 2.0})
        log.write(3, "sample", {"text": "é\u2028ü"})
    written = records(tmp_path)
    assert all(record.pop("time") > 1.7e9 for record in written)
    assert written == [
        {"step": 3, "kind": "validation", "loss": {"en": 1.5, "de": 2.5}, "mean": 2.0},
        {"step": 3, "kind": "sample", "text": "é\u2028ü"},
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("validation/loss/de")[0].value == 2.5
    assert board.Scalars("validation/mean")[0].step == 3


def test_a_resumed_run_writes_its_lines_once(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, "train", {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ki')  # cut short by a crash
    with opened(tmp_path, 3) as log:
        log.write(4, "train", {"loss": 40.0})
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_wandb_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real package and no network: its offline files hold them."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with opened(tmp_path, project="stablelm") as log:
        log.write(7, "validation", {"loss": {"en": 1.5}})
        tracker = log._tracker
        assert tracker.summary["validation/loss/en"] == 1.5
        assert tracker.summary["step"] == 7
        assert (tracker.project, tracker.name) == ("stablelm", tmp_path.name)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert wandb.run is None


def test_wandb_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    remedy = r"train\.wandb = 'p' needs the package 'wandb': pip install 'slm2-minimal\[wandb\]'"
    with pytest.raises(MissingExtraError, match=remedy), opened(tmp_path, project="p"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_run_logs(small_run: Make) -> None:
    """Losses, speed in all and per rank, share of the peak, memory, and where the data
    is.
    """
    trainer = Trainer.from_config(small_run())
    trainer.run()
    [*_, last] = [record for record in records(trainer.run_dir) if record["kind"] == "train"]
    assert set(last) == {
        "step", "kind", "time", "loss", "mean_loss", "grad_norm", "lr", "tokens_per_second",
        "tokens_per_second_per_rank", "share_of_peak", "memory_gb", "tokens", "data_position",
    }  # fmt: skip
    assert (last["step"], last["tokens"], last["data_position"]) == (20, 20 * 256, 160)
    assert last["tokens_per_second"] == last["tokens_per_second_per_rank"] > 0
    [*_, validation] = [
        record for record in records(trainer.run_dir) if record["kind"] == "validation"
    ]
    assert set(validation["loss"]) == {"en", "math"}


def test_a_trace_of_three_steps(small_run: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slm2_minimal")
    trainer = Trainer.from_config(small_run(**{"train.profile_step": 5, "train.prompts": []}))
    trainer.run()
    [trace] = (trainer.run_dir / "profile").glob("*.json.gz")
    assert f"trace of 3 steps: {trace}" in caplog.text
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum(event["name"].startswith("Optimizer.step") for event in events) == 3
    assert "aten::mm" in (trainer.run_dir / "profile" / "step-00000005.txt").read_text()


def test_a_silent_log_writes_nothing(tmp_path: Path) -> None:
    """As on every rank but the first."""
    with RunLog.opened(tmp_path / "run", 0, "project", silent=True) as log:
        log.write(1, "train", {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_progress_line(small_run: Make) -> None:
    progress = Progress(small_run(**{"train.steps": 600}), 0, 1, torch.float32)
    values = {
        "loss": 4.1234, "mean_loss": 4.2, "lr": 2.5e-3, "grad_norm": 0.5,
        "tokens_per_second": 5210.4, "share_of_peak": 0.345,
    }  # fmt: skip
    progress._started -= 10.0  # ten seconds for twenty steps
    line = progress.line(20, values)
    expected = (
        "step  20/600 | loss 4.123 | mean 4.200 | lr 2.50e-03 | grad norm 0.50 | "
        "5,210 tokens/s | 34% of peak | 4:50 left"
    )
    assert line == expected


def test_speed_is_of_steps_and_not_of_pauses(
    small_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps of 256 tokens in two seconds, and five of validation between."""
    # Started, the interval begins, a pause from, to, measured, the next one begins.
    clock = iter([0.0, 0.0, 1.0, 6.0, 7.0, 7.0])
    monkeypatch.setattr("slm2_minimal.train.log.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("slm2_minimal.train.log.peak_flops", lambda device, dtype: 1e9)
    progress = Progress(small_run(), 0, 2, torch.float32)
    progress.count(3.0)
    with progress.paused():
        pass
    progress.count(2.0)
    progress.count(1.0)
    values = progress.measure(3, torch.device("cpu"))
    assert values["tokens_per_second"] == pytest.approx(3 * 256 / 2)
    assert values["tokens_per_second_per_rank"] == pytest.approx(3 * 256 / 4)
    assert (values["mean_loss"], values["tokens"]) == (2.0, 3 * 256)


def test_the_table_of_the_best() -> None:
    lines = best_table(
        Best(step=7, mean=1.5, losses={"en": 1.0, "de": 2.0}), {"en": 3.0, "de": 2.5}
    )
    assert lines.splitlines() == [
        "best checkpoint: step 7, mean validation loss 1.500 nats per token",
        "language   model  unigram   below",
        "en         1.000    3.000   2.000",
        "de         2.000    2.500   0.500",
    ]


def test_a_line_that_was_cut_inside_a_character(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as log:
        log.write(1, "sample", {"text": "è"})
        log.write(1, "sample", {"text": "è già"})
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex("è".encode()) + 1])
    with opened(tmp_path, 1) as log:
        log.write(2, "sample", {"text": "ora"})
    assert [record["text"] for record in records(tmp_path)] == ["è", "ora"]
    assert "the last line was cut short" in caplog.text
