"""The command line's own part: exit codes, one line on stderr, help."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from slm2_minimal.config import RunConfig
from slm2_minimal.config.keys import manual
from slm2_minimal.train.trainer import Trainer
from tests.commands import Run, says, write_config

ROOT = Path(__file__).parent.parent


# Help


def test_help(slm2: Run) -> None:
    code, out, err = slm2("--help")
    assert (code, err) == (0, "")
    for command in ("prepare", "train", "plan", "launch", "generate", "chat", "export", "doctor"):
        assert command in out


HELP = {
    "train": ["CONFIG", "laptop, stablelm-2-1_6b, ", "--section.field VALUE", "--check"],
    "launch": ["CONFIG", "--gpus N", "--gpu NAME", "--dry-run", "--out DIR", "--sbatch KEY=VALUE"],
    "prepare": ["CONFIG", "--executor {own,local,slurm}", "--tasks N", "--partition NAME"],
    "plan": ["CONFIG", "--gpus N", "--gpu NAME", "--strategy NAME", "--tflops X", "--mfu X"],
    "generate": ["--prompt", "--file", "--samples", "--max-new-tokens", "--stop", "--lookup"],
    "chat": ["model", "--format {zephyr,chatml,plain}", "--system TEXT", "--min-p"],
    "export": ["model", "out", "--format {hf,gguf}", "--type", "q8_0", "--tokenizer"],
    "doctor": ["usage: slm2 doctor"],
}


@pytest.mark.parametrize("command", HELP)
def test_help_of_a_command(slm2: Run, command: str) -> None:
    code, out, err = slm2(command, "--help")
    assert (code, err) == (0, "")
    for word in HELP[command]:
        assert word in out
    assert slm2(command, "-h")[1] == out


@pytest.mark.parametrize("command", ["prepare", "train", "plan", "launch"])
def test_help_has_all_keys_with_values_and_meanings(slm2: Run, command: str) -> None:
    """Of the configuration that is named before --help, else the defaults."""
    _, out, _ = slm2(command, "--help")
    assert f"The values here are the defaults; slm2 {command} CONFIG --help" in " ".join(
        out.split()
    )
    assert out.endswith(f"{manual(RunConfig())}\n")
    code, out, err = slm2(command, "tiny", "--train.steps", "3", "--help")
    assert (code, err) == (0, "")
    assert "The values here are tiny's" in out
    assert out.endswith(f"{manual(RunConfig.preset('tiny'))}\n")
    assert "\n  --model.hidden_size 256  " in out


def test_help_on_a_configuration_that_cannot_be(slm2: Run) -> None:
    says(slm2("train", "tony", "--help"), 2, "preset = 'tony': unknown")


def test_help_into_a_pipe_that_closes() -> None:
    """`| head` has seen enough: no complaint, and no traceback at the end."""
    command = [sys.executable, "-m", "slm2_minimal", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_version(slm2: Run) -> None:
    code, out, err = slm2("--version")
    assert (code, err) == (0, "")
    python = sys.version.split()[0]
    here = f"slm2 {version('slm2-minimal')} (torch {torch.__version__}, Python {python})\n"
    assert out == here


# Wrong words: exit code 2, one line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["COMMAND", "see slm2 --help"]),
        (["fly"], ["'fly'", "train"]),
        (["train"], ["CONFIG", "see slm2 train --help"]),
        (["train", "tony"], ["preset = 'tony'", "choose one of laptop, stablelm-2-1_6b, "]),
        (["train", "nowhere.toml"], ["config = 'nowhere.toml': No such file"]),
        (
            ["train", "tiny", "--train.stepz", "3"],
            ["train.stepz = 3: unknown key; did you mean 'steps'?"],
        ),
        (
            ["train", "tiny", "--train.peak_rate", "1"],
            ["train.peak_rate = 1: unknown key; did you mean 'schedule.peak_rate'?"],
        ),
        (
            ["train", "tiny", "--data.weight", "1"],
            ["data.weight = 1: unknown key; known are chat, prepared, "],
        ),
        (["train", "tiny", "--train.steps", "ten"], ["train.steps = 'ten'", "valid integer"]),
        (["train", "tiny", "--train.steps"], ["train.steps: missing"]),
        (
            ["train", "tiny", "--train.start_from", "a", "--train.init_from", "b"],
            ["train.init_from = 'b': excludes train.start_from = 'a'"],
        ),
        (["train", "tiny", "--train.steps", "-1"], ["train.steps = -1", "greater than 0"]),
        (["train", "tiny", "--steps", "3"], ["argument = '--steps'", "--section.field value"]),
        (["train", "tiny", "extra"], ["argument = 'extra'"]),
        (["train", "tiny", "--data.tokenizer", "gpt2"], ["tokenizer = 'gpt2': unknown"]),
        (
            ["train", "tiny", "--data.sources.web.path", "nowhere.txt"],
            ["path = 'nowhere.txt': no such file"],
        ),
        (
            ["train", "tiny", "--data.tokenizer", "arcade100k"],
            ["model.vocab_size = 1024", "100289 ids"],
        ),
        (["train", "stablelm-2-1_6b"], ["parallel.strategy = 'zero1'", "torchrun"]),
        (
            ["train", "stablelm-2-1_6b", "--check", "--gpus", "512"],
            ["data.sources = {}: nothing to read"],
        ),
        (
            ["train", "laptop", "--check"],
            [
                "data.prepared = 'prepared/laptop': manifest.json: No such file or directory; run"
                " slm2 prepare"
            ],
        ),
        (
            ["train", "tiny", "--check", "--gpus", "3"],
            ["train.global_batch_tokens = 512", "the nearest is 1536"],
        ),
        (["train", "tiny", "--check", "--gpus", "many"], ["--gpus", "'many'"]),
        (
            ["train", "tiny", "--gpus", "2"],
            ["--gpus: goes with --check; slm2 launch tiny starts several"],
        ),
        (
            ["train", "tiny", "--gpu", "a100-40gb"],
            ["--gpu: goes with --check; slm2 launch tiny starts several"],
        ),
        (["launch", "tiny"], ["--gpus", "see slm2 launch --help"]),
        (["launch", "stablelm-2-1_6b", "--gpus", "512"], ["data.sources = {}: nothing to read"]),
        (
            ["launch", "stablelm-2-1_6b", "--gpus", "500", "--dry-run"],
            ["gpus = 500", "the nearest is 496"],
        ),
        (["launch", "tiny", "--gpus", "1", "--train.stepz", "3"], ["train.stepz = 3: unknown key"]),
        (["export"], ["model, out", "see slm2 export --help"]),
        (["export", "x", "y", "--format", "onnx"], ["--format", "'onnx'"]),
        (["export", "/nowhere/at/all", "y"], ["'/nowhere/at/all': no such folder"]),
        (["export", "/nowhere/at/all", "."], ["'/nowhere/at/all': no such folder"]),
        (["generate"], ["model", "see slm2 generate --help"]),
        (["generate", "x", "--top-k", "few"], ["--top-k", "'few'"]),
        (["generate", "/nowhere/at/all", "--temperature", "-1"], ["temperature = -1.0"]),
        (["generate", "/nowhere/at/all", "--top-p", "1.5"], ["top_p = 1.5"]),
        (["generate", "x", "--device", "tpu"], ["--device", "'tpu'"]),
        (
            ["generate", "x", "--tempreature", "1"],
            ["argument = '--tempreature'", "slm2 generate --help"],
        ),
        (["generate", "x", "--temp", "1"], ["argument = '--temp'"]),
        (["generate", "/nowhere/at/all"], ["'/nowhere/at/all': no such folder"]),
        (
            ["generate", "owner/name", "--tokenizer", "tiny"],
            ["path = 'owner/name': neither a local folder nor to be had from the Hub ("],
        ),
        (["generate", "/nowhere/at/all", "--tokenizer", "gpt2"], ["tokenizer = 'gpt2': unknown"]),
        (["doctor", "--fast"], ["argument = '--fast'"]),
    ],
    ids=" ".join,
)
def test_wrong_words(
    slm2: Run, words: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = slm2(*words)
    says(result, 2, *parts)
    assert result[1] == ""
    assert (
        list(tmp_path.iterdir()) == []
    )  # nothing is written before everything is known to be right


def test_a_configuration_may_stand_behind_overrides(slm2: Run, config: Path) -> None:
    expected = slm2("train", config, "--check", "--train.steps", "2")
    assert expected[0] == 0
    for words in (
        ("--train.steps", "2", config, "--check"),
        ("--check", "--train.steps=2", config),
        ("--train.steps", "2", "--check", config),
    ):
        assert slm2("train", *words) == expected


def test_the_installed_command_and_its_exit_code() -> None:
    slm2 = Path(sys.executable).parent / "slm2"
    done = subprocess.run(
        [slm2, "train", "tony"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("slm2: preset = 'tony'")
    assert done.stderr.count("\n") == 1


def test_doctor(slm2: Run) -> None:
    code, out, err = slm2("doctor")
    assert (code, err) == (0, "")
    for part in (
        "python 3.",
        "torch",
        "matrix product",
        "GFLOP/s",
        "memory copy",
        "extra hf",
        "arcade100k: 100,289 ids at hand",
        "disk: ",
    ):
        assert part in out


# Failures: exit code 1


def test_a_run_that_blows_up(slm2: Run, tmp_path: Path) -> None:
    result = slm2(
        "train",
        write_config(tmp_path),
        "--schedule.peak_rate",
        "1e36",
        "--train.prompts",
        "[]",
        "--train.validate_every",
        "9",
    )
    says(result, 1, "TrainingError: loss = ", "not finite, again and again; nothing was updated")


@pytest.mark.parametrize(
    "failure", [RuntimeError("out of memory"), OSError(28, "No space left on device")]
)
def test_failures(
    slm2: Run, config: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(self: Trainer) -> None:
        raise failure

    monkeypatch.setattr(Trainer, "run", fail)
    says(slm2("train", config), 1, f"{type(failure).__name__}: ", str(failure))


def test_interrupted(slm2: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupt)
    assert slm2("train", config)[0] == 130
