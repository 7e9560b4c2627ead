"""The state of a run: what a checkpoint holds of it, and what is no state."""

import json
import math
from typing import Any

import pytest

from slm2_minimal.config import CheckpointError
from slm2_minimal.train.guard import WINDOW
from slm2_minimal.train.state import Best, RunState
from tests.complaints import complaint


def state() -> RunState:
    best = Best(step=4, mean=1.5, losses={"en": 1.0, "de": 2.0})
    return RunState(
        config={"train": {"steps": 7}}, data_fingerprint="d", dtype="float32",
        tokenizer_fingerprint="t", step=5, data_position=48, recent_losses=[2.0, 1.5], best=best,
    )  # fmt: skip


def written(**changes: Any) -> dict[str, Any]:
    """What `state.json` holds, digests included."""
    return json.loads(json.dumps(state().to_dict())) | {"sha256": {"x": "y"}} | changes


def test_there_and_back() -> None:
    assert RunState.from_dict(written(), "here") == state()


def test_a_checkpoint_of_an_older_version_is_read() -> None:
    content = written(best={})
    del content["tokenizer_fingerprint"]
    saved = RunState.from_dict(content, "here")
    assert (saved.best, saved.tokenizer_fingerprint, saved.step) == (None, "", 5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"step": "5"}, "step"),
        ({"step": -1}, "step"),
        ({"step": 10**30}, "step"),
        ({"step": 5.5}, "step"),
        ({"data_position": None}, "data_position"),
        ({"data_position": True}, "data_position"),
        ({"recent_losses": [1.0, math.nan]}, "recent_losses.1"),
        ({"recent_losses": {"a": 1.0}}, "recent_losses"),
        ({"best": {"step": 1}}, "best.mean"),
        ({"best": {"step": 1, "mean": 1.0, "losses": {"en": "low"}}}, "best.losses.en"),
        ({"best": [1]}, "best"),
        ({"config": None}, "config"),
        ({"dtype": 16}, "dtype"),
    ],
)
def test_what_is_no_state(changes: dict[str, Any], field: str) -> None:
    content = written(**changes)
    message = complaint(lambda: RunState.from_dict(content, "checkpoint = 'x'"), CheckpointError)
    assert message.startswith(f"checkpoint = 'x': {field} cannot be read (")
    assert message.endswith("remove this checkpoint to go on from the one before")


def test_a_missing_field() -> None:
    content = written()
    del content["data_fingerprint"]
    assert "data_fingerprint cannot be read" in complaint(
        lambda: RunState.from_dict(content, "here"), CheckpointError
    )


def test_steps_are_counted_and_the_window_moves() -> None:
    now = state()
    for number in range(WINDOW):
        now.advance(float(number))
    assert now.step == 5 + WINDOW
    assert now.recent_losses == [float(number) for number in range(WINDOW)]


def test_a_run_where_another_was() -> None:
    """Its progress is taken, its identity is not."""
    ours = RunState(config={"ours": 1}, data_fingerprint="d", dtype="bfloat16")
    moved = ours.at(state())
    assert (moved.config, moved.dtype) == ({"ours": 1}, "bfloat16")
    assert (moved.step, moved.data_position, moved.recent_losses) == (5, 48, [2.0, 1.5])
