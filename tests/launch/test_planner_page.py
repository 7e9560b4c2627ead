"""The page of `slm2 plan`: the report's run, another one, and one that cannot be."""

import pytest

from slm2_minimal.cli import main
from slm2_minimal.config import RunConfig
from slm2_minimal.launch.planner import GPUS, plan, table

FULL = RunConfig.preset("stablelm-2-1_6b")


def test_the_page_for_the_reports_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "stablelm-2-1_6b", "--gpus", "512", "--gpu", "a100-40gb"]) == 0
    out = capsys.readouterr().out
    for part in (
        "512 x a100-40gb in nodes of 8 (assumed), zero1, activation checkpointing none",
        "MFU 54.5% of 312 (data sheet)",
        "1.065 s at 170 TFLOP/s a GPU (report: ~170, confirmed)",
        "75.7k GPU-hours",
        "report 92k GPU-hours, 322k USD at 3.5 a GPU-hour, MFU 54.5% (confirmed)",
        "33.3 MWh at 400 W",
        "30 MWh (secondary), that is 296 W",
        "40.5 MWh (derived from secondary)",
        "kg/kWh (unverified)",
        "11 t CO2 (secondary)",
        "1,644,515,328 parameters",
        "4.194T tokens",
    ):
        assert part in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert lines["ddp"].count("(no)") == 2
    assert (
        lines["zero1"].count("(no)")
        == lines["fsdp"].count("(no)")
        == lines["micro-batch 2"].count("(no)")
        == 0
    )
    assert "micro-batch 8" not in lines, "four rows a rank cannot be cut into eights"
    assert len(out.splitlines()) < 30
    assert max(map(len, out.splitlines())) <= 120


def test_the_page_for_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The report's results stand beside nothing but its own run."""
    words = (
        "plan tiny --gpus 2 --gpu h100-80gb --mfu 0.25 --usd-per-hour 2 --train.micro_batch_size 1"
        " --checkpointing full --strategy fsdp"
    )
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert "TFLOP/s a GPU (given)" in out
    assert "at 2 a GPU-hour (given)" in out
    assert "MWh (secondary)" not in out
    assert "hybrid" not in out
    assert "no price known" in table(FULL, plan(FULL, 8, "h100-80gb"))


def test_the_command_line_says_what_is_wrong_and_knows_the_gpus(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "stablelm-2-1_6b", "--gpus", "7"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slm2: gpus = 7: ")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in GPUS)
