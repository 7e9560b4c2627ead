"""How sure a result is: standard errors, bootstrap intervals, and differences between
two models on the same items.

A result is a mean of values (of an accuracy, zeros and ones), or with `weights` a
ratio: sum of values / sum of weights. For bits per byte the values are an item's bits
and the weights its bytes. Errors are those of drawing other items of the same kind;
what another seed of training would change is not in them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from slm2_minimal.config import DataError

NORMAL_95 = 1.959964  # standard errors to either side of the mean that hold 95%
RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean or ratio, and its standard error: nan of a single item."""

    mean: float
    error: float


class Difference(NamedTuple):
    """What the second model has more than the first, its standard error, and the ends
    of its 95% interval, by the normal distribution.
    """

    mean: float
    error: float
    low: float
    high: float


def mean_and_error(values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
    """The mean of the values, or their ratio to `weights`.

    The error of a mean is the sample's standard deviation / sqrt(n), as in
    lm-evaluation-harness. That of a ratio R is the same with value - R * weight in
    place of a deviation (the delta method).

    Raises:
        DataError: no values, or not as many weights.
    """
    numbers, sizes = _checked(values, weights)
    ratio = numbers.sum() / sizes.sum()
    residuals = numbers - ratio * sizes
    n = len(numbers)
    error = math.nan
    if n > 1:
        error = math.sqrt(n / (n - 1) * (residuals**2).sum()) / sizes.sum()
    return Estimate(float(ratio), error)


def bootstrap_interval(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The ends of the interval that holds `level` of the means (or ratios) of as many
    items drawn from these with replacement. The same seed gives the same ends.
    """
    numbers, sizes = _checked(values, weights)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = random.integers(len(numbers), size=len(numbers))
        means[i] = numbers[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a: Sequence[float], b: Sequence[float], weights: Sequence[float] | None = None
) -> Difference:
    """b - a, of two models on the same items in the same order.

    Items that are hard for both cancel, so the interval is narrower than two separate
    errors suggest. It is no wider than a point where both models agree on every item:
    that says little where there are few.

    Raises:
        DataError: not as many values of both, or none.
    """
    if len(a) != len(b):
        raise DataError(
            f"b = {len(b)} values: not on the same items as a, which has {len(a)}; score both on"
            " the same ones"
        )
    mean, error = mean_and_error(np.subtract(b, a).tolist(), weights)
    return Difference(mean, error, mean - NORMAL_95 * error, mean + NORMAL_95 * error)


def _checked(
    values: Sequence[float], weights: Sequence[float] | None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Both as arrays; weights left out are ones."""
    numbers = np.asarray(values, dtype=np.float64)
    sizes = np.ones(len(numbers)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(numbers):
        raise DataError("values = []: none; give at least one item")
    if len(sizes) != len(numbers) or not (sizes > 0).all():
        raise DataError(
            f"weights = {len(sizes)} numbers: must be positive, one for each of the {len(numbers)}"
            " values"
        )
    return numbers, sizes
