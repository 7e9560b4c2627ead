"""What a run finds in its folder: its own checkpoints, damaged ones, a user's files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from slm2_minimal.config import CheckpointError, RunConfig
from slm2_minimal.distributed import checkpoint, pretrained
from slm2_minimal.files import read_json
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.trainer import Trainer
from tests.complaints import complaint
from tests.train.runs import SHARD, losses

Make = Callable[..., RunConfig]
QUIET: dict[str, Any] = {
    "train.prompts": [],
    "train.validate_every": 1000,
    "train.save_every": 2,
    "train.keep_checkpoints": 1,
    "schedule.cooldown_start": None,
    "schedule.cooldown_steps": None,
}


def run(small_run: Make, steps: int, **changes: Any) -> Path:
    """The folder of a run to `steps`, or of one that went on to there."""
    config = small_run(**QUIET | {"train.steps": steps} | changes)
    Trainer.from_config(config).run()
    return Path(config.train.output_dir)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()} - {"tensorboard"}


def test_what_a_user_keeps_is_neither_read_nor_removed(small_run: Make) -> None:
    folder = run(small_run, 2)
    shutil.copytree(folder / "step-00000002", folder / "step-final")
    shutil.copytree(folder / "step-00000002", folder / "step-000000002")
    (folder / ".old-backup").mkdir()
    (folder / ".step-mine.part").mkdir()
    mine = {"step-final", "step-000000002", ".old-backup", ".step-mine.part"}
    run(small_run, 4)
    run(small_run, 8)
    assert names(folder) == mine | {"step-00000008"}
    assert checkpoint.steps(folder) == [folder / "step-00000008"]


def test_what_a_crash_left_is_removed(small_run: Make) -> None:
    folder = run(small_run, 2)
    for name in (".step-00000003.part", ".old-step-00000001"):
        (folder / name).mkdir()
    run(small_run, 4)
    assert names(folder) == {"step-00000004"}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"data_position": state["data_position"] + 1},
        lambda state: state | {"step": 3},
        lambda state: {key: value for key, value in state.items() if key != "data_fingerprint"},
        lambda state: state | {"sha256": None},
        lambda state: state | {"sha256": {"../x": "y"}},
        lambda state: [state],
    ],
)
def test_a_state_that_was_altered_is_passed_over(
    change: Callable[[Any], Any], small_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint before is used, and the end is the same."""
    keep = {"train.keep_checkpoints": 5}
    folder = run(small_run, 6, **keep)
    expected = losses(small_run())
    state = folder / "step-00000006" / "state.json"
    state.write_text(json.dumps(change(json.loads(state.read_text()))))
    run(small_run, 6, **keep)
    assert "state.json is damaged" in caplog.text
    assert losses(small_run()) == expected
    assert "damaged-step-00000006" in names(folder)


def test_a_state_of_an_older_version_is_read(small_run: Make) -> None:
    folder = run(small_run, 2)
    path = folder / "step-00000002" / "state.json"
    state = json.loads(path.read_text())
    del state["digest"], state["tokenizer_fingerprint"], state["config"]["train"]["init_from"]
    path.write_text(json.dumps(state | {"best": {}}))
    run(small_run, 4)
    assert "step-00000004" in names(folder)


def test_tensors_that_a_checkpoint_does_not_list_are_not_read(small_run: Make) -> None:
    folder = run(small_run, 2)
    shutil.copy(folder / "step-00000002" / SHARD, folder / "step-00000002" / "copy.safetensors")
    message = complaint(lambda: run(small_run, 4), CheckpointError)
    assert message.endswith("copy.safetensors does not belong to it; move it away")
    assert names(folder) == {"step-00000002"}, "nothing is renamed"


def test_what_cannot_be_read_is_not_damaged(
    small_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(small_run, 2)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "sha256", refuse)
    message = complaint(lambda: run(small_run, 4), CheckpointError)
    assert message.endswith(f"{SHARD} cannot be read (Permission denied); mend that")
    assert names(folder) == {"step-00000002"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": "x"}', '{"step": null}', "\x00"])
def test_a_damaged_note_of_the_best(content: str, small_run: Make) -> None:
    folder = run(small_run, 2)
    (folder / "best.json").write_text(content)
    assert pretrained.load_model(str(folder))[1] == "tiny"
    run(small_run, 4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_as_its_run_left_it(tied: bool, small_run: Make) -> None:
    config = small_run(**QUIET | {"train.steps": 2, "model.tie_word_embeddings": tied})
    trainer = Trainer.from_config(config)
    trainer.run()
    model, name = pretrained.load_model(config.train.output_dir)
    assert name == "tiny"
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert all(weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(
        model.state_dict(), trainer.replica.model.state_dict(), rtol=0, atol=0
    )


def test_a_model_is_read_without_what_takes_long_to_import(small_run: Make) -> None:
    folder = run(small_run, 2)
    code = (
        "import sys; from slm2_minimal.distributed.pretrained import load_model;"
        f" load_model({str(folder)!r});"
        " print(sys.modules.keys() & {'sympy', 'torch.distributed.checkpoint'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "set()\n"


def test_a_weight_that_is_not_there(small_run: Make) -> None:
    """As a checkpoint of a changed architecture would lack one."""
    folder = run(small_run, 2) / "step-00000002"
    with safe_open(folder / SHARD, "pt") as file:
        places = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        del places["model/lm_head.weight"]
        tensors = {name: file.get_tensor(name) for name in places}
    save_file(tensors, folder / SHARD, {"DCP_SHARDING_INFO": json.dumps(places)})
    state = read_json(folder / checkpoint.STATE)
    with torch.device("meta"):
        model = StableLM2(checkpoint.saved_config(folder, state).model)
    message = complaint(lambda: checkpoint.read_whole(folder, model), CheckpointError)
    assert message.endswith("cannot be read (lm_head.weight is not whole); remove this folder")


def test_more_text_may_be_allowed_to_a_run(small_run: Make) -> None:
    """Else a run that needs it could never go on."""
    sources = {"math": {"languages": ["math"], "max_epochs": 1.0}}
    run(small_run, 2, **{"data.sources": sources})
    folder = run(small_run, 4, **{"data.sources": sources, "data.sources.math.max_epochs": 2.0})
    assert "step-00000004" in names(folder)


def test_a_branch_needs_more_steps_than_its_trunk_made(small_run: Make) -> None:
    start = str(run(small_run, 4) / "step-00000004")
    branch = small_run("branch", **QUIET | {"train.start_from": start, "train.steps": 4})
    message = complaint(lambda: Trainer.from_config(branch).run())
    assert message.startswith("train.steps = 4: ")


def test_fewer_steps_than_were_made_are_said(
    small_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    run(small_run, 4)
    caplog.set_level("INFO", "slm2_minimal")
    run(small_run, 3)
    assert "going on after step 4: more than train.steps = 3" in caplog.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule.cooldown_start": 4, "schedule.cooldown_steps": 2}, False),
        ({"schedule.decay_steps": 99}, True),
    ],
)
def test_a_branch_is_warned_where_its_rate_would_jump(
    changes: dict[str, Any], told: bool, small_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Another cooldown is what branches are for."""
    start = str(run(small_run, 4) / "step-00000004")
    branch = small_run("branch", **QUIET | {"train.start_from": start, "train.steps": 6} | changes)
    Trainer.from_config(branch).run()
    assert ("so the learning rate jumps there" in caplog.text) is told
