"""The guard's judgement and its counts, by hand. What the trainer makes of them is in
test_trainer.
"""

import math

import pytest

from slm2_minimal.train.guard import MAX_REWINDS, MAX_SKIPS, MIN_LOSSES, WINDOW, Guard


def after(losses: list[float], sigmas: float = 3.0) -> Guard:
    guard = Guard(sigmas)
    for loss in losses:
        assert guard.objection(loss, 1.0) is None
        guard.accept(loss)
    return guard


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)]
)
@pytest.mark.parametrize("sigmas", [0.0, 6.0])
def test_what_is_not_finite_is_always_bad(loss: float, norm: float, sigmas: float) -> None:
    assert Guard(sigmas).objection(loss, norm) == "not finite"


def test_the_edge_by_hand() -> None:
    """Losses 1 and 3 in turn have mean 2 and standard deviation 1, so three of them end
    at 5.
    """
    guard = after([1.0, 3.0] * 20)
    assert guard.objection(5.0, 1.0) is None
    assert guard.objection(5.01, 1.0) == "a loss 3.0 standard deviations above 2.000"
    assert guard.objection(-50.0, 1.0) is None, "a low loss is no reason"
    assert after([1.0, 3.0] * 20, sigmas=0.0).objection(1e9, 1.0) is None


def test_it_needs_some_losses_first_and_forgets_old_ones() -> None:
    few = after([1.0, 3.0] * (MIN_LOSSES // 2 - 1))
    assert few.objection(1e9, 1.0) is None
    guard = after([100.0] * WINDOW)
    for number in range(WINDOW):
        guard.accept(1.0 + 2.0 * (number % 2))
    assert guard.objection(6.0, 1.0) is not None
    assert after([2.0] * WINDOW).objection(2.1, 1.0) == "a loss inf standard deviations above 2.000"


def test_skips_lead_to_a_rewind_and_rewinds_to_the_end() -> None:
    guard = after([1.0, 3.0] * 20)
    assert [guard.skip() for _ in range(MAX_SKIPS)] == [False] * (MAX_SKIPS - 1) + [True]
    assert [guard.rewind() for _ in range(MAX_REWINDS + 1)] == [True] * MAX_REWINDS + [False]


def test_a_good_step_ends_a_row_of_skips_and_many_end_the_count_of_rewinds() -> None:
    guard = after([1.0, 3.0] * 20)
    guard.skip()
    guard.accept(2.0)
    assert not guard.skip()
    assert all(guard.rewind() for _ in range(MAX_REWINDS))
    for _ in range(WINDOW - 1):
        guard.accept(2.0)
    assert guard.rewinds == MAX_REWINDS
    guard.accept(2.0)
    assert guard.rewind()


def test_what_a_checkpoint_holds() -> None:
    guard, other = after([1.0, 3.0] * 20), Guard(3.0)
    guard.skip()
    other.restore(list(guard.losses))
    assert other.objection(5.01, 1.0) == guard.objection(5.01, 1.0)
    assert other.skips == 0
