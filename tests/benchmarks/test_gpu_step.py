"""The benchmark that waits for a GPU, run in small on the CPU: it compares the same
work, and one side's failure is only its own.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_step
from benchmarks.gpu_sides import Bench, Side, named
from benchmarks.gpu_step import OURS, SMALL, difference, measure, report, warmed_up
from slm2_minimal.model.flops import flops_per_token

SCRIPT = Path(gpu_step.__file__)


@pytest.fixture
def bench() -> Bench:
    return Bench(torch.device("cpu"), SMALL, 2, 64)


def test_all_of_it_runs_in_small() -> None:
    """Every side of ours and transformers' give one loss on the same rows; peers that
    are not here are named.
    """
    command = [sys.executable, str(SCRIPT), "--small", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "a tiny model on the CPU: what follows measures nothing"
    result = json.loads(lines[-1])
    sides = {(row["side"], row["rows"]): row for row in result["sides"]}
    ours = {
        (f"{named('slm2_minimal', compiled)}, checkpointing {kind}", rows)
        for rows, compiled, kind in OURS
    }
    assert (
        ours | {("transformers, sdpa", "whole"), ("transformers, sdpa, compiled", "whole")}
        <= sides.keys()
    )
    for rows in ("whole", "packed"):
        losses = [row["loss"] for (_, kind), row in sides.items() if kind == rows]
        assert max(losses) - min(losses) < 0.01
    assert all(len(row["seconds"]) == 2 for row in sides.values())
    assert all(
        (row["planned_bytes"] is not None) == name.startswith("slm2")
        for (name, _), row in sides.items()
    )
    for peer in ("litgpt", "flash_attention_2"):
        assert any(peer in name for name, _ in sides) or any(
            line.startswith("left out: ") and peer in line for line in lines
        )


def test_sides_share_their_weights_and_leave_them_as_they_are(bench: Bench) -> None:
    before = {name: parameter.clone() for name, parameter in bench.parameters.items()}
    side = bench.ours("packed", False, "full")
    assert dict(side.model.named_parameters()).keys() == before.keys()
    for name, parameter in side.model.named_parameters():
        assert parameter is bench.parameters[name]
    for _ in range(2):
        bench.step(side)
    assert len(side.seconds) == 2
    assert all(torch.equal(parameter, before[name]) for name, parameter in bench.parameters.items())
    assert all(parameter.grad is None for parameter in bench.parameters.values())


def test_packed_rows_hold_documents_and_whole_rows_one(bench: Bench) -> None:
    assert bench.data["whole"].attention_ids is None
    assert int(bench.data["packed"].document_ids.max()) >= 2


def test_other_work_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A side with the other rows under this name is left out and makes the run a
    failure.
    """

    def swapped() -> Side:
        side = bench.ours("packed", False, "none")
        side.rows = "whole"
        return side

    def all_sides(bench: Bench) -> Iterator[tuple[str, Callable[[], Side]]]:
        yield "first", lambda: bench.ours("whole", False, "none")
        yield "swapped", swapped

    monkeypatch.setattr(gpu_step, "candidates", all_sides)
    sides, failed = warmed_up(bench, "", float("inf"))
    assert ([side.rows for side in sides], failed) == (["whole"], 1)
    assert difference(sides[0], sides[0]) == ""
    assert sides[0].gradient is not None
    for change in ({"loss": sides[0].loss + 0.02}, {"gradient": 1.1 * sides[0].gradient}):
        assert difference(replace(sides[0], **change), sides[0]).startswith(
            "not the same work: loss "
        )


def test_one_sides_failure_is_only_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(error: Exception) -> Callable[[], Side]:
        def build() -> Side:
            raise error

        return build

    def all_sides(bench: Bench) -> Iterator[tuple[str, Callable[[], Side]]]:
        yield "missing", raising(ModuleNotFoundError("No module named 'peer'"))
        yield "large", raising(torch.OutOfMemoryError("CUDA out of memory"))
        yield "broken", raising(RuntimeError("a compiler's"))
        yield "good", lambda: bench.ours("whole", False, "none")

    monkeypatch.setattr(gpu_step, "candidates", all_sides)
    sides, failed = warmed_up(bench, "", float("inf"))
    assert (len(sides), failed) == (1, 1)
    assert sides[0].seconds == []
    out = capsys.readouterr().out
    for line in (
        "left out: missing: No module named 'peer'",
        "left out: large: does not fit",
        "left out: broken: failed",
    ):
        assert line in out
    assert warmed_up(bench, "good", 0.0) == ([], 0)
    assert "left out: good: no time left" in capsys.readouterr().out
    assert warmed_up(bench, "nobody", float("inf")) == ([], 0)


def test_rounds_end_with_the_time_and_the_table_is_of_medians(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    side = bench.ours("whole", False, "none")
    assert measure(bench, [side], 5, end=0.0) == 1
    assert len(side.seconds) == 1
    side.seconds, side.peak = [0.5, 0.25, 9.0], 3e9
    result = report(bench, [side], 3)
    assert result["sides"][0]["tokens_per_second"] == 2 * 64 / 0.5
    assert result["sides"][0]["mfu"] == pytest.approx(
        2 * 64 / 0.5 * flops_per_token(SMALL, 64) / result["peak"]
    )
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[-6:-1] == ["whole", "256", "500.0", line[-3], "3.0"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_step.py"])
    with pytest.raises(
        SystemExit,
        match=r"^gpu_step: no CUDA device is visible to torch; --small runs it on the CPU$",
    ):
        gpu_step.main()
