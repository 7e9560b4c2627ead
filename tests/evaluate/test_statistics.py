"""Errors and intervals by hand, against scipy, and how often they hold the truth."""

import math

import numpy as np
import pytest
import scipy.stats

from slm2_minimal.config import DataError
from slm2_minimal.evaluate.statistics import bootstrap_interval, mean_and_error, paired_difference


def test_a_mean_and_its_error_by_hand() -> None:
    found = mean_and_error([1, 0, 0, 1])  # deviations of a half: sqrt(4 / 3 * 1/4 / 4)
    assert found == pytest.approx((0.5, math.sqrt(1 / 12)))
    assert found.error == pytest.approx(scipy.stats.sem([1, 0, 0, 1]))
    mean, error = mean_and_error([3.0])
    assert mean == 3
    assert math.isnan(error)


def test_a_ratio_with_equal_weights_is_a_mean() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    plain = mean_and_error(values)
    assert mean_and_error(values, [2] * 5) == pytest.approx((plain.mean / 2, plain.error / 2))


def test_the_error_of_a_ratio_is_what_repeated_draws_have() -> None:
    """Bits that grow with the bytes of a text: the ratio is surer than its parts."""
    random = np.random.default_rng(0)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        sizes = random.integers(50, 500, size=200).astype(float)
        return 2 * sizes + random.normal(0, 30, size=200), sizes

    ratios = [mean_and_error(*draw()) for _ in range(300)]
    spread = np.std([each.mean for each in ratios])
    assert np.mean([each.error for each in ratios]) == pytest.approx(spread, rel=0.15)


def test_a_paired_difference() -> None:
    """Two models that differ on two of a hundred items, and on nothing else."""
    hard = np.random.default_rng(1).normal(0, 10, size=100)
    better = hard.copy()
    better[:2] += 1
    found = paired_difference(hard, better)
    assert found.mean == pytest.approx(0.02)
    assert found.error == pytest.approx(scipy.stats.sem(better - hard))
    assert found.low == pytest.approx(0.02 - 1.959964 * found.error)
    assert found.high == pytest.approx(0.02 + 1.959964 * found.error)
    assert mean_and_error(hard).error > 50 * found.error
    same = paired_difference(hard, hard)
    assert same == (0, 0, 0, 0)


def test_a_paired_difference_of_bits_per_byte() -> None:
    sizes = [10.0, 20.0, 70.0]
    a, b = [20.0, 30.0, 150.0], [10.0, 30.0, 110.0]
    assert paired_difference(a, b, sizes).mean == pytest.approx(150 / 100 - 200 / 100)


def test_a_bootstrap_interval() -> None:
    values = np.random.default_rng(2).normal(3, 2, size=400)
    low, high = bootstrap_interval(values, resamples=2000)
    error = mean_and_error(values).error
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert bootstrap_interval(values, resamples=50) == bootstrap_interval(values, resamples=50)
    assert bootstrap_interval(values, resamples=50, seed=1) != bootstrap_interval(
        values, resamples=50
    )
    assert bootstrap_interval([5.0, 5.0], [1, 1], resamples=9) == (5, 5)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        a, b = random.random((2, 150)) < [[0.4], [0.5]]
        found = paired_difference(a.astype(float), b.astype(float))
        held += found.low <= 0.1 <= found.high
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(
    ("values", "weights", "says"),
    [
        ([], None, "values = .*: none; give at least one"),
        ([1, 2], [1], "weights = 1 numbers: must be positive, one for each of the 2"),
        ([1, 2], [1, 0], "weights = 2 numbers: must be positive"),
    ],
)
def test_bad_values(values: list[float], weights: list[float] | None, says: str) -> None:
    for call in (mean_and_error, bootstrap_interval):
        with pytest.raises(DataError, match=says):
            call(values, weights)


def test_other_items() -> None:
    with pytest.raises(DataError, match="b = 1 values: not on the same items as a, which has 2"):
        paired_difference([1, 2], [1])
