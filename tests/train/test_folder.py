"""A run's folder: one run at a time, a note of its start, and a closed terminal."""

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm2_minimal.config import DataError, RunConfig
from slm2_minimal.distributed import checkpoint
from slm2_minimal.distributed.world import World
from slm2_minimal.train.folder import alone
from slm2_minimal.train.trainer import Trainer
from tests.complaints import complaint
from tests.train.runs import assert_bitwise, final_files

Make = Callable[..., RunConfig]
WORLD = World(torch.device("cpu"))


def test_two_runs_in_one_folder(small_run: Make, tmp_path: Path) -> None:
    config = small_run()
    with alone(Path(config.train.output_dir), WORLD):
        message = complaint(lambda: Trainer.from_config(config).run(), DataError)
    assert message.endswith("another run is at work there; let it end, or name another folder")
    Trainer.from_config(config).run()


def test_the_folder_is_free_once_its_process_has_ended(tmp_path: Path) -> None:
    """Whatever it has forked: workers outlive a killed trainer by seconds."""
    with alone(tmp_path / "run", WORLD):
        (tmp_path / "run" / "kept").touch()
        context = multiprocessing.get_context("fork")
        begun = context.Event()
        forked = context.Process(target=lambda: (begun.set(), time.sleep(60)))
        forked.start()
        assert begun.wait(30)
    try:
        with alone(tmp_path / "run", WORLD):
            assert forked.is_alive()
    finally:
        forked.kill()
        forked.join()


def test_the_note_says_what_runs(small_run: Make) -> None:
    config = small_run(**{"train.steps": 1})
    Trainer.from_config(config).run()
    note = json.loads((Path(config.train.output_dir) / "run.json").read_text())
    assert RunConfig.from_dict(note["config"]) == config
    assert note["torch"] == torch.__version__
    assert {"started", "command", "commit", "slm2_minimal", "processes"} <= note.keys()


def test_a_closed_terminal_saves_and_ends(small_run: Make, tmp_path: Path) -> None:
    """As with `| head -1`: the run can go on from where it was."""
    changes = {"train.steps": 200, "train.log_every": 1, "train.prompts": []}
    changes |= {"train.save_every": 1000, "train.validate_every": 1000}
    config = small_run(**changes)
    code = (
        "import json, sys; from slm2_minimal.terminal import log_to_terminal;"
        "from slm2_minimal.config import RunConfig;"
        "from slm2_minimal.train.trainer import Trainer; log_to_terminal();"
        "Trainer.from_config(RunConfig.from_dict(json.loads(sys.argv[1]))).run()"
    )
    command = [sys.executable, "-c", code, json.dumps(config.to_dict())]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
    assert process.returncode == 0
    [saved] = checkpoint.steps(Path(config.train.output_dir))
    assert 0 < int(saved.name[-8:]) < 200


@pytest.mark.parametrize("during", ["validation", "sampling"])
def test_signals_are_honoured_within_a_batch(
    during: str, small_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run saves, and goes on to the same end."""
    whole = small_run("whole")
    Trainer.from_config(whole).run()
    config = small_run("stopped")
    trainer = Trainer.from_config(config)
    batches = 0

    def count(module: object, arguments: object, output: object) -> None:
        nonlocal batches
        if not torch.is_grad_enabled():
            batches += 1
            trainer.signals.received = True

    if during == "sampling":
        trainer.model.register_forward_hook(count)
        trainer.run()
        assert trainer.state.step == 0
    else:
        trainer._sample = lambda: None  # type: ignore[method-assign]
        trainer.model.register_forward_hook(count)
        trainer.run()
        assert trainer.state.step == 10
    assert batches == 1
    Trainer.from_config(config).run()
    assert_bitwise(final_files(whole), final_files(config))
