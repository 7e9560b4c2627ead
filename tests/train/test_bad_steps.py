"""What the trainer makes of the guard's judgement: a bad batch is passed over, a bad
stretch sends the run back, a bad run ends.
"""

import itertools
import json
import logging
from collections.abc import Callable

import pytest

from slm2_minimal.config import RunConfig
from slm2_minimal.distributed import checkpoint
from slm2_minimal.train.trainer import Trainer, TrainingError
from tests.train.runs import assert_bitwise, poison, weights, whole_batches

Make = Callable[..., RunConfig]


# Bad steps


def test_a_bad_batch_is_passed_over(small_run: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The data position moves on and the step does not: the run is bitwise that of a
    loader without the batch.
    """
    caplog.set_level(logging.INFO, "slm2_minimal")
    trainer = Trainer.from_config(whole_batches(small_run))
    poison(trainer, 4)
    trainer.run()
    out = caplog.text
    assert "step 3 | passed over the batch at data position 24: not finite (loss nan" in out
    assert (trainer.state.step, trainer.state.data_position) == (20, 21 * 8)
    other = Trainer.from_config(whole_batches(small_run, "other"))
    for step in range(20):
        if step == 3:
            other.state.data_position, other._batches = 32, None
        other.step()
    assert_bitwise(weights(trainer), weights(other))
    events = [
        json.loads(line) for line in (trainer.run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    assert [(e["step"], e["first"], e["rows"]) for e in events if e["kind"] == "skip"] == [
        (3, 24, 8)
    ]


def test_bad_batches_in_a_row_send_the_run_back_to_its_checkpoint(
    small_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slm2_minimal")
    trainer = Trainer.from_config(whole_batches(small_run))
    poison(trainer, 13, 14, 15)  # steps 1 to 12 are good, the newest checkpoint is that of step 10
    trainer.run()
    out = caplog.text
    assert out.count("passed over") == 3
    assert "step 12 | back to the checkpoint of step 10; the data goes on at position 120" in out
    assert (trainer.state.step, trainer.state.data_position) == (20, 25 * 8)
    other = Trainer.from_config(whole_batches(small_run, "other", **{"train.save_every": 1000}))
    for step in range(20):
        if step == 10:
            other.state.data_position, other._batches = 120, None
        other.step()
    assert_bitwise(weights(trainer), weights(other))


def test_a_run_that_stays_bad_ends_before_the_update(small_run: Make) -> None:
    trainer = Trainer.from_config(whole_batches(small_run))
    poison(trainer, *range(4, 100))
    for _ in range(3):
        trainer.step()
    before = weights(trainer)
    with pytest.raises(
        TrainingError,
        match=r"loss = nan.*at step 3 \(data position 40\): not finite, again and again",
    ):
        trainer.step()  # there is no checkpoint to go back to
    assert_bitwise(before, weights(trainer))
    assert trainer.state.step == 3
    trainer.save()
    with pytest.raises(TrainingError, match="again and again"):
        trainer.step()
    trainer.checkpoints.wait()
    checkpoint.read_state(trainer.run_dir / "step-00000003")  # intact
    assert trainer.state.data_position == 8 * (3 + 3 + 3 * 3), (
        "a vain one, two rewinds, and the one too many: three bad batches each"
    )


def test_a_spike_of_the_loss_is_passed_over_and_remembered(small_run: Make) -> None:
    """Also by a run that was resumed just before it."""
    steps = {
        "train.steps": 60, "train.save_every": 40, "train.spike_sigmas": 4.0,
        "schedule.kind": "constant", "schedule.cooldown_start": None,
        "schedule.cooldown_steps": None,
    }  # fmt: skip

    def spike(trainer: Trainer, at: int) -> None:
        count = itertools.count(1)
        trainer.model.model.norm.register_forward_hook(
            lambda m, a, out: out * (30.0 if next(count) == at else 1.0)
        )

    whole = Trainer.from_config(whole_batches(small_run, "whole", **steps))
    spike(whole, 42)
    whole.run()
    Trainer.from_config(whole_batches(small_run, "parts", **steps | {"train.steps": 40})).run()
    second = Trainer.from_config(whole_batches(small_run, "parts", **steps))
    spike(second, 2)
    second.run()
    assert whole.state.data_position == second.state.data_position == 61 * 8
    assert_bitwise(weights(whole), weights(second))


def test_a_stage_of_other_data_is_no_spike(small_run: Make) -> None:
    """The guard forgets the losses of the stage before."""
    stage = {"start_tokens": 32 * 8 * 5, "weights": {"en": 1, "math": 3}}
    trainer = Trainer.from_config(whole_batches(small_run, **{"data.stages": [stage]}))
    for _ in range(5):
        trainer.step()
    assert len(trainer.state.recent_losses) == 5
    trainer.step()
    assert len(trainer.state.recent_losses) == 1
