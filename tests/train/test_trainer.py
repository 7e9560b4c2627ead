"""The loop as a user meets it: learns, resumes bitwise, refuses what does not fit,
stops before a bad update, keeps the best.
"""

import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm2_minimal.config import CheckpointError, DataError, RunConfig
from slm2_minimal.distributed import checkpoint, pretrained
from slm2_minimal.prepare.run import prepare
from slm2_minimal.train.schedule import learning_rate
from slm2_minimal.train.trainer import Trainer, TrainingError
from tests.train.runs import SHARD, assert_bitwise, final_files, losses, poison

Make = Callable[..., RunConfig]


def test_a_run_learns_logs_samples_and_keeps_the_best(
    small_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_run()
    trainer = Trainer.from_config(config)
    caplog.set_level(logging.INFO, "slm2_minimal")
    trainer.run()
    run, out = Path(config.train.output_dir), caplog.text
    curve = losses(config)
    assert list(curve) == [5, 10, 15, 20]
    assert curve[20] < curve[5] - 0.3
    assert "20/20 | loss" in out
    assert out.count("sample | 12 + 7 =") == 2  # before and after
    best = json.loads((run / "best.json").read_text())
    assert set(best["losses"]) == {"en", "math"}
    assert (run / f"step-{best['step']:08d}" / SHARD).exists()
    assert "unigram" in out
    assert list((run / "tensorboard").iterdir())


def test_rate_of_the_optimizer_is_the_schedules(small_run: Make) -> None:
    trainer = Trainer.from_config(small_run())
    for step in range(5):
        values = trainer.step()
        expected = learning_rate(step, trainer.config.schedule)
        assert values["lr"] == expected
        assert all(group["lr"] == expected for group in trainer.optimizer.param_groups)


def test_resume_is_bitwise(small_run: Make) -> None:
    whole = small_run("whole", **{"train.micro_batch_size": 2})
    Trainer.from_config(whole).run()
    parts = small_run("parts", **{"train.micro_batch_size": 2})
    Trainer.from_config(
        small_run("parts", **{"train.micro_batch_size": 2, "train.steps": 10})
    ).run()
    second = Trainer.from_config(parts)
    second.run()
    assert_bitwise(final_files(whole), final_files(parts))
    assert losses(whole) == losses(parts)


def test_finished_run_is_not_trained_again(
    small_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_run()
    Trainer.from_config(config).run()
    before = final_files(config)
    caplog.set_level(logging.INFO, "slm2_minimal")
    Trainer.from_config(config).run()
    assert "going on after step 20" in caplog.text
    assert_bitwise(before, final_files(config))


def test_cooldown_branches_from_any_step(small_run: Make) -> None:
    trunk = small_run("trunk", **{"schedule.cooldown_start": None, "schedule.cooldown_steps": None})
    Trainer.from_config(trunk).run()
    branch = small_run(
        "branch",
        **{
            "train.start_from": str(Path(trunk.train.output_dir) / "step-00000010"),
            "schedule.cooldown_start": 10,
            "schedule.cooldown_steps": 4,
            "train.steps": 14,
        },
    )
    trainer = Trainer.from_config(branch)
    trainer.run()
    straight = Trainer.from_config(
        small_run(
            "straight",
            **{"schedule.cooldown_start": 10, "schedule.cooldown_steps": 4, "train.steps": 14},
        )
    )
    straight.run()
    assert_bitwise(final_files(branch), final_files(straight.config))


def test_another_config_or_other_data_is_refused(small_run: Make) -> None:
    Trainer.from_config(small_run(**{"train.steps": 10})).run()
    with pytest.raises(CheckpointError, match=r"optimizer\.weight_decay = 0\.2.*has 0\.1"):
        Trainer.from_config(small_run(**{"optimizer.weight_decay": 0.2})).run()
    with pytest.raises(CheckpointError, match=r"model\.num_hidden_layers = 2"):
        Trainer.from_config(small_run(**{"model.num_hidden_layers": 2})).run()
    start = str(Path(small_run().train.output_dir) / "step-00000010")
    with pytest.raises(CheckpointError, match="not the data"):
        Trainer.from_config(small_run("other", **{"train.start_from": start, "data.seed": 7})).run()
    with pytest.raises(CheckpointError, match=r"model\.hidden_size = 64"):
        Trainer.from_config(
            small_run("wide", **{"train.start_from": start, "model.hidden_size": 64})
        ).run()
    with pytest.raises(CheckpointError, match="No such file"):
        Trainer.from_config(small_run("none", **{"train.start_from": start + "x"})).run()


def test_damaged_checkpoint_is_passed_over(
    small_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_run()
    Trainer.from_config(config).run()
    expected = final_files(config)
    newest = Path(config.train.output_dir) / "step-00000020" / SHARD
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    Trainer.from_config(config).run()
    assert re.search(r"shard-.* is missing or altered.*trying the one before", caplog.text)
    assert_bitwise(expected, final_files(config))
    for folder in checkpoint.steps(Path(config.train.output_dir)):
        (folder / SHARD).unlink()
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        Trainer.from_config(config).run()


def test_half_written_checkpoint_is_not_seen(small_run: Make) -> None:
    config = small_run(**{"train.steps": 10})
    Trainer.from_config(config).run()
    run = Path(config.train.output_dir)
    part = run / ".step-00000015.part"
    part.mkdir()
    (part / SHARD).write_bytes(b"half")
    assert [folder.name for folder in checkpoint.steps(run)] == ["step-00000010"]
    Trainer.from_config(small_run()).run()
    assert not part.exists()


def test_retention_keeps_the_newest_the_best_and_the_one_before_the_cooldown(
    small_run: Make,
) -> None:
    config = small_run(
        **{
            "train.save_every": 2,
            "train.validate_every": 4,
            "train.keep_checkpoints": 2,
            "schedule.cooldown_start": 14,
            "schedule.cooldown_steps": 6,
        }
    )
    Trainer.from_config(config).run()
    run = Path(config.train.output_dir)
    best = json.loads((run / "best.json").read_text())["step"]
    kept = {int(folder.name[-8:]) for folder in checkpoint.steps(run)}
    assert kept == {14, 18, 20, best}
    assert not list(run.glob(".*step*"))


def test_the_best_is_what_a_resumed_run_knows(small_run: Make) -> None:
    """After a crash between a checkpoint and the note of the best, or with the best one
    gone.
    """
    config = small_run()
    Trainer.from_config(config).run()
    run = Path(config.train.output_dir)
    best = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps({"step": 1}))
    assert pretrained.load_model(str(run))[1] == "tiny", (
        "a note of one that is gone leads to the newest"
    )
    trainer = Trainer.from_config(config)
    trainer.resume()
    assert trainer.state.to_dict()["best"] == json.loads((run / "best.json").read_text()) == best
    assert trainer.checkpoints.settle_best(best | {"step": 1}) == {}


def test_damaged_checkpoints_are_not_among_those_that_are_kept(
    small_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Else, with one to keep, it would be the damaged one."""
    config = small_run(**{"train.save_every": 5, "train.validate_every": 1000})
    Trainer.from_config(config).run()
    run = Path(config.train.output_dir)
    (run / "step-00000020" / SHARD).write_bytes(b"")
    again = Trainer.from_config(
        small_run(**{"train.validate_every": 1000, "train.keep_checkpoints": 1})
    )
    again.resume()
    assert "trying the one before" in caplog.text
    again.step()
    again.save()
    again.checkpoints.wait()
    assert {folder.name for folder in checkpoint.steps(run)} == {"step-00000016"}
    checkpoint.read_state(run / "step-00000016")


def started(config: RunConfig) -> subprocess.Popen[str]:
    """The run in a process of its own, the first of its group."""
    code = "\n".join(
        (
            "import json, logging, sys",
            "from slm2_minimal.config import RunConfig",
            "from slm2_minimal.train.trainer import Trainer",
            "logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)",
            "Trainer.from_config(RunConfig.from_dict(json.loads(sys.argv[1]))).run()",
        )
    )
    command = [sys.executable, "-c", code, json.dumps(config.to_dict())]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_same_command_goes_on(
    small_run: Make, number: signal.Signals, tmp_path: Path
) -> None:
    whole = small_run(
        "whole", **{"train.steps": 60, "train.save_every": 1000, "train.validate_every": 1000}
    )
    Trainer.from_config(whole).run()
    config = small_run(
        "stopped", **{"train.steps": 60, "train.save_every": 1000, "train.validate_every": 1000}
    )
    process = started(config)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "the same command goes on from there" in out
    stopped_at = checkpoint.steps(Path(config.train.output_dir))[-1]
    assert 0 < int(stopped_at.name[-8:]) < 60
    Trainer.from_config(config).run()
    assert_bitwise(final_files(whole), final_files(config))


def test_killed_inside_a_checkpoint_write(small_run: Make) -> None:
    """SIGKILL at a moment of its own choosing: what is found is complete, and the end
    is the unbroken run's.
    """
    changes = {
        "train.steps": 40,
        "train.save_every": 1,
        "train.validate_every": 1000,
        "train.keep_checkpoints": 3,
    }
    whole, config = small_run("whole", **changes), small_run("killed", **changes)
    Trainer.from_config(whole).run()
    process = started(config)
    run = Path(config.train.output_dir)
    deadline = time.monotonic() + 60
    while len(checkpoint.steps(run)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    for folder in checkpoint.steps(run):
        checkpoint.read_state(folder)
    Trainer.from_config(config).run()
    assert_bitwise(final_files(whole), final_files(config))


# Prepared data


def test_prepared_data_and_worker_processes_train_the_same_model(
    small_run: Make, tmp_path: Path
) -> None:
    """From memory, from shards, and from shards read ahead by processes and resumed in
    the middle: bitwise one run.
    """
    prepared = {"data.prepared": str(tmp_path / "prepared"), "prepare.workers": 1}
    prepare(small_run(**prepared))
    Trainer.from_config(small_run("memory")).run()
    Trainer.from_config(small_run("shards", **prepared)).run()
    Trainer.from_config(
        small_run("ahead", **prepared, **{"data.workers": 1, "train.steps": 10})
    ).run()
    Trainer.from_config(
        small_run("ahead", **prepared, **{"data.workers": 2, "data.verify": "sizes"})
    ).run()
    for name in ("shards", "ahead"):
        assert losses(small_run(name)) == losses(small_run("memory"))
        assert_bitwise(final_files(small_run(name)), final_files(small_run("memory")))


def test_worker_processes_end_with_the_run(small_run: Make) -> None:
    """Whether it ends well or not, and while the trainer is still there."""
    others = set(multiprocessing.active_children())
    trainer = Trainer.from_config(
        small_run(
            **{
                "data.workers": 2,
                "train.steps": 2,
                "schedule.cooldown_start": None,
                "schedule.cooldown_steps": None,
            }
        )
    )
    trainer.step()
    assert len(set(multiprocessing.active_children()) - others) == 2
    trainer.run()
    assert set(multiprocessing.active_children()) == others
    broken = Trainer.from_config(small_run("broken", **{"data.workers": 2, "train.prompts": []}))
    poison(broken, *range(1, 100))
    with pytest.raises(TrainingError):
        broken.run()
    assert set(multiprocessing.active_children()) == others


def test_ctrl_c_is_answered_once_whatever_the_workers(small_run: Make) -> None:
    """A terminal sends SIGINT to all processes of the group."""
    config = small_run(
        **{
            "data.workers": 2,
            "train.steps": 200,
            "train.log_every": 1,
            "train.save_every": 400,
            "train.validate_every": 400,
        }
    )
    process = started(config)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            os.killpg(process.pid, signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "the same command goes on from there" in out
    assert err.count("SIGINT") == 1, err


def test_a_run_does_not_go_on_with_other_prepared_data(small_run: Make, tmp_path: Path) -> None:
    first, second = (
        {"data.prepared": str(tmp_path / name), "prepare.workers": 1} for name in ("one", "two")
    )
    prepare(small_run(**first))
    prepare(small_run(**second, **{"prepare.max_characters": 1500}))
    Trainer.from_config(small_run(**first, **{"train.steps": 10})).run()
    with pytest.raises(
        CheckpointError, match=r"^data = [0-9a-f]{16}: not the data that .* was trained on"
    ):
        Trainer.from_config(small_run(**second)).run()


def test_text_that_would_be_read_too_often_is_refused_before_the_run(
    small_run: Make, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError,
        match=(
            r"^data\.sources\.en\.max_epochs = 0\.1: a run of 160 sequences would read .* shorten"
            r" the run$"
        ),
    ):
        Trainer.from_config(small_run(**{"data.sources.en.max_epochs": 0.1}))
    assert not (tmp_path / "run").exists()
