"""The log of a run in its three forms, the trace, and the numbers that stand in
them.
"""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slm2_minimal.config import MissingExtraError, RunConfig
from slm2_minimal.distributed.device import peak_memory
from slm2_minimal.train.log import RunLog, StepTrace
from slm2_minimal.train.trainer import Trainer

Make = Callable[..., RunConfig]


def records(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().rstrip("\n").split("\n")
    ]


def test_one_line_in_both_files(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.write(3, "validation", {"loss": {"en": 1.5, "de": 2.5}, "mean": 2.0})
    log.write(3, "sample", {"text": "é\u2028ü"})
    log.close()
    assert records(tmp_path) == [
        {"step": 3, "kind": "validation", "loss": {"en": 1.5, "de": 2.5}, "mean": 2.0},
        {"step": 3, "kind": "sample", "text": "é\u2028ü"},
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("validation/loss/de")[0].value == 2.5
    assert board.Scalars("validation/mean")[0].step == 3


def test_a_resumed_run_writes_its_lines_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    for step in range(1, 6):
        log.write(step, "train", {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ki')  # cut short by a crash
    log = RunLog(tmp_path, 3)
    log.write(4, "train", {"loss": 40.0})
    log.close()
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
    log = RunLog(tmp_path, 0, "stablelm")
    log.write(7, "validation", {"loss": {"en": 1.5}})
    assert log.tracker.summary["validation/loss/en"] == 1.5
    assert (log.tracker.project, log.tracker.name, log.tracker.summary["step"]) == (
        "stablelm",
        tmp_path.name,
        7,
    )
    log.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert wandb.run is None


def test_wandb_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        MissingExtraError,
        match=r"train\.wandb = 'p' needs the package 'wandb': pip install 'slm2-minimal\[wandb\]'",
    ):
        RunLog(tmp_path, 0, "p")
    assert not list(tmp_path.iterdir())


def test_what_a_run_logs(small_run: Make) -> None:
    """Losses, speed in all and per rank, share of the peak, memory, and where the data
    is.
    """
    trainer = Trainer(small_run())
    trainer.run()
    [*_, last] = [record for record in records(trainer.run_dir) if record["kind"] == "train"]
    assert set(last) == {
        "step", "kind", "loss", "grad_norm", "rate", "tokens_per_second", "tokens_per_second_per_rank", "share_of_peak", "memory_gb",
        "tokens", "data_position",
    }  # fmt: skip
    assert (last["step"], last["tokens"], last["data_position"]) == (20, 20 * 256, 160)
    assert last["tokens_per_second"] == last["tokens_per_second_per_rank"] > 0
    [*_, validation] = [
        record for record in records(trainer.run_dir) if record["kind"] == "validation"
    ]
    assert set(validation["loss"]) == {"en", "math"}


def test_peak_memory_counts_bytes() -> None:
    before = peak_memory(torch.device("cpu"))
    grown = bytearray(before + 64 * 2**20)  # more than was ever held
    grown[::4096] = b"1" * len(grown[::4096])
    assert peak_memory(torch.device("cpu")) >= before + 64 * 2**20
    assert before > 50 * 2**20


def test_a_trace_of_three_steps(small_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(small_run(**{"train.profile_step": 5, "train.prompts": []}))
    trainer.run()
    [trace] = (trainer.run_dir / "profile").glob("*.json.gz")
    assert f"trace of 3 steps: {trace}" in capsys.readouterr().out
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum(event["name"].startswith("Optimizer.step") for event in events) == 3
    assert "aten::mm" in (trainer.run_dir / "profile" / "step-00000005.txt").read_text()


def test_no_trace_is_asked_for(tmp_path: Path) -> None:
    trace = StepTrace(tmp_path / "profile", None, torch.device("cpu"))
    trace.before(0)
    assert trace.after(0) is None
    assert not (tmp_path / "profile").exists()
