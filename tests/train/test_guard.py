"""The guard's verdicts and counts, by hand; `test_bad_steps` has what follows."""

import math

import pytest

from slm2_minimal.train.guard import MAX_REWINDS, MAX_SKIPS, MIN_LOSSES, WINDOW, Action, Guard

ALTERNATING = [1.0, 3.0] * 20  # mean 2, standard deviation 1
BAD = (math.nan, 1.0, ALTERNATING)
GOOD = (2.0, 1.0, ALTERNATING)


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)]
)
@pytest.mark.parametrize("sigmas", [0.0, 6.0])
def test_what_is_not_finite_is_always_bad(loss: float, norm: float, sigmas: float) -> None:
    verdict = Guard(sigmas).judge(loss, norm, [])
    assert verdict == (Action.SKIP, "not finite")


def test_the_edge_by_hand() -> None:
    """Three standard deviations above the mean of 2 end at 5."""
    guard = Guard(3.0)
    assert guard.objection(5.0, 1.0, ALTERNATING) == ""
    reason = guard.objection(5.01, 1.0, ALTERNATING)
    assert reason == "a loss 3.0 standard deviations above 2.000"
    assert guard.objection(-50.0, 1.0, ALTERNATING) == "", "a low loss is no reason"
    assert Guard(0.0).objection(1e9, 1.0, ALTERNATING) == ""


def test_it_needs_some_losses_first() -> None:
    assert Guard(3.0).objection(1e9, 1.0, ALTERNATING[: MIN_LOSSES - 1]) == ""
    assert Guard(3.0).objection(1e9, 1.0, ALTERNATING[:MIN_LOSSES]) != ""
    reason = Guard(3.0).objection(2.1, 1.0, [2.0] * WINDOW)
    assert reason == "a loss inf standard deviations above 2.000"


def test_skips_lead_to_rewinds_and_rewinds_to_the_end() -> None:
    guard = Guard(3.0)
    in_a_row = [Action.SKIP] * (MAX_SKIPS - 1) + [Action.REWIND]
    for _ in range(MAX_REWINDS):
        assert [guard.judge(*BAD).action for _ in range(MAX_SKIPS)] == in_a_row
    last = [guard.judge(*BAD).action for _ in range(MAX_SKIPS)]
    assert last == [*in_a_row[:-1], Action.GIVE_UP]


def test_a_good_step_ends_a_row_of_skips() -> None:
    guard = Guard(3.0)
    for _ in range(5):
        assert guard.judge(*BAD).action is Action.SKIP
        assert guard.judge(*GOOD).action is Action.ACCEPT


def test_many_good_steps_end_the_count_of_rewinds() -> None:
    guard = Guard(3.0)
    guard.rewinds = MAX_REWINDS
    for _ in range(WINDOW - 1):
        guard.judge(*GOOD)
    assert guard.rewinds == MAX_REWINDS
    guard.judge(*GOOD)
    assert guard.rewinds == 0


def test_what_is_forgotten() -> None:
    """The counts of a row. Rewinds stay counted, or a run could go back for ever."""
    guard = Guard(3.0)
    for _ in range(MAX_SKIPS + 1):
        guard.judge(*BAD)
    guard.forget()
    assert (guard.skips, guard.good_steps, guard.rewinds) == (0, 0, 1)
