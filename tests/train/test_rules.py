"""What `--check` refuses and what a run refuses: the same, in the same words.

`WRONG` holds the configurations that cannot be, of every kind that the tests know: a
value, two values that disagree, processes, tokenizer, text, folders, checkpoints.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slm2_minimal import cli
from slm2_minimal.cli import main
from slm2_minimal.config import RunConfig
from slm2_minimal.train.rules import check_run
from slm2_minimal.train.trainer import Trainer
from tests.complaints import complaint, config_error

Make = Callable[..., RunConfig]

WRONG: list[tuple[dict[str, Any], str]] = [
    # One value.
    ({"train.steps": 0}, r"train\.steps = 0: "),
    ({"train.steps": "ten"}, r"train\.steps = 'ten': "),
    ({"train.stepz": 3}, r"train\.stepz = 3: unknown key; did you mean 'steps'\?"),
    ({"train.dtype": "float16"}, r"train\.dtype = 'float16': "),
    ({"train.keep_checkpoints": 0}, r"train\.keep_checkpoints = 0: "),
    ({"train.spike_sigmas": -1.0}, r"train\.spike_sigmas = -1\.0: "),
    ({"optimizer.beta2": 1.0}, r"optimizer\.beta2 = 1\.0: "),
    ({"optimizer.clip_norm": 0.0}, r"optimizer\.clip_norm = 0\.0: "),
    ({"data.validation_percent": 100}, r"data\.validation_percent = 100: "),
    ({"data.temperature": 0.0}, r"data\.temperature = 0\.0: "),
    ({"data.verify": "none"}, r"data\.verify = 'none': "),
    ({"prepare.similarity": 1.0}, r"prepare\.similarity = 1\.0: "),
    ({"parallel.strategy": "zero3"}, r"parallel\.strategy = 'zero3': "),
    ({"train.prompts": [""]}, r"train\.prompts: one of them is empty"),
    ({"train.sample_tokens": 64}, r"train\.sample_tokens = 64: must leave room"),
    ({"train.profile_step": 20}, r"train\.profile_step = 20: the run ends after step 20"),
    (
        {"model.hidden_size": 65_536, "model.num_hidden_layers": 500},
        r"model\.hidden_size = 65536: needs \d{3},\d{3}\.\d GB at least",
    ),
    # Values that disagree.
    ({"model.hidden_size": 33}, r"model\.hidden_size = 33: must be a multiple"),
    ({"model.num_key_value_heads": 3}, r"model\.num_key_value_heads = 3: must divide"),
    ({"model.partial_rotary_factor": 0.1}, r"model\.partial_rotary_factor = 0\.1: gives 1 "),
    ({"model.eos_token_id": 1024}, r"model\.eos_token_id = 1024: must lie below"),
    ({"schedule.min_rate": 1.0}, r"schedule\.min_rate = 1\.0: must lie below"),
    ({"schedule.cooldown_start": None}, r"schedule\.cooldown_start = None, "),
    ({"data.seq_len": 128}, r"data\.seq_len = 128: longer than the context"),
    ({"train.global_batch_tokens": 200}, r"train\.global_batch_tokens = 200: must be a multiple"),
    ({"data.stages": [{"start_tokens": 33, "weights": {}}]}, r"data\.stages\[0\]\.start_tokens"),
    ({"train.start_from": "a", "train.init_from": "b"}, r"train\.(start|init)_from = "),
    # Processes: these are for one that stands by itself.
    ({"parallel.strategy": "ddp"}, r"parallel\.strategy = 'ddp': this is one process by itself"),
    ({"parallel.strategy": "hybrid"}, r"parallel\.strategy = 'hybrid': this is one process"),
    # The tokenizer.
    (
        {"model.vocab_size": 512, "model.eos_token_id": 0},
        r"model\.vocab_size = 512: the tokenizer 'tiny' has 1024 ids",
    ),
    ({"data.tokenizer": "nowhere.model"}, r"tokenizer = 'nowhere\.model': "),
    ({"data.tokenizer": "other"}, r"tokenizer = 'other': unknown"),
    # The text.
    ({"data.sources": {}}, r"data\.sources = \{\}: nothing to read"),
    ({"data.sources": {"web": {"path": "nowhere.txt"}}}, r"path = 'nowhere\.txt': no such file"),
    ({"data.sources": {"x": {"languages": ["xx"]}}}, r"data\.sources\.x: no document"),
    ({"data.prepared": "nowhere"}, r"data\.prepared = 'nowhere': "),
    ({"data.sources.en.weight": 0.5}, r"weights = 2 shares with sum 1\.5: shares must sum"),
    ({"train.steps": 20_000}, r"data\.sources\.\w+\.max_epochs = 4\.0: a run of 160,000 "),
    # Folders and checkpoints.
    ({"train.output_dir": "/dev/null/run"}, r"train\.output_dir = '/dev/null/run': /dev/null "),
    ({"train.start_from": "nowhere"}, r"checkpoint = 'nowhere': No such file or directory"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[case[1] for case in WRONG])
def test_the_check_and_the_run_refuse_alike(
    changes: dict[str, Any], message: str, small_run: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    written = SimpleNamespace(load=lambda source, overrides: small_run(**changes))
    monkeypatch.setattr(cli, "RunConfig", written)
    monkeypatch.chdir(tmp_path)
    said = []
    for options in (["--check"], []):
        assert cli.main(["train", "tiny", *options]) == 2
        said.append(capsys.readouterr().err)
    check, run = said
    assert check == run
    assert re.match("slm2: " + message, run), run
    assert len(run.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "nothing is written"


SEVERAL: list[tuple[int, dict[str, Any], str]] = [
    (2, {"parallel.strategy": "single"}, r"parallel\.strategy = 'single': is for one process"),
    (2, {"model.tie_word_embeddings": True}, r"model\.tie_word_embeddings = true: cannot be"),
    (4, {}, r"train\.global_batch_tokens = 256: must be a multiple of 512 = 4 x "),
    (
        6,
        {"parallel.strategy": "hybrid", "parallel.shard_ranks": 4},
        r"parallel\.shard_ranks = 4: must divide the number of processes, 6$",
    ),
    (
        1,
        {"parallel.strategy": "fsdp", "parallel.tensor_parallel": 2},
        r"parallel\.tensor_parallel = 2: must divide the GPUs of a node, 1$",
    ),
]


@pytest.mark.parametrize(("processes", "changes", "message"), SEVERAL, ids=str)
def test_several_processes(
    small_run: Make, processes: int, changes: dict[str, Any], message: str
) -> None:
    config = small_run(**changes)
    refuse = lambda: check_run(config, processes, processes, launched=True)  # noqa: E731
    assert re.match(message, config_error(refuse))


def test_a_strategy_for_several_is_fine_where_they_are_launched(small_run: Make) -> None:
    config = small_run(**{"parallel.strategy": "ddp"})
    assert check_run(config, 1, 1, launched=True) == "ddp"


@pytest.mark.parametrize(
    ("processes", "changes", "fits"),
    [
        (1, {}, False),
        (2, {"parallel.strategy": "ddp"}, False),
        (2, {"parallel.strategy": "fsdp"}, True),
        (2, {"parallel.strategy": "zero1"}, True),
    ],
)
def test_what_a_gpu_must_hold(
    small_run: Make, processes: int, changes: dict[str, Any], fits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """12 bytes a parameter, shared among those that share them."""
    config = small_run(**changes)
    memory = 11 * config.model.num_parameters()
    monkeypatch.setattr("slm2_minimal.distributed.device.total_memory", lambda device: memory)
    options: dict[str, Any] = {"launched": processes > 1, "device": torch.device("cuda")}
    if fits:
        check_run(config, processes, processes, **options)
    else:
        message = config_error(lambda: check_run(config, processes, processes, **options))
        assert "this machine's cuda has" in message
    check_run(config, processes, processes, launched=processes > 1)  # on another machine


def test_an_early_end_is_said_once_by_the_check_and_by_the_run(
    small_run: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda self: None)
    words = ["train", "tiny", f"--train.output_dir={tmp_path / 'run'}", "--train.steps=90"]
    ending = ["--schedule.cooldown_start=80", "--schedule.cooldown_steps=20"]
    for mode in ([], ["--check"]):
        assert main([*words, *ending, *mode]) == 0
        said = capfd.readouterr().err
        assert said.count("train.steps = 90: the run ends before its schedule, at a rate of") == 1
        assert said.count("the schedule ends at step 100: give its lengths as shares") == 1

        assert main([*words, *mode]) == 0
        assert "ends before" not in capfd.readouterr().err, "its lengths are shares"


def test_a_trainer_asks_the_rules(small_run: Make) -> None:
    config = small_run(**{"train.sample_tokens": 64})
    assert "must leave room" in complaint(lambda: Trainer.from_config(config))
