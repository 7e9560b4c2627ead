"""Weights as parts: shares that are apportioned, and shares by temperature."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.data.mixture import DENOMINATOR, integer_weights, temperature_shares
from tests.complaints import data_error as complaint


def test_integers_are_parts_already() -> None:
    assert integer_weights({"a": 3, "b": 2, "c": np.int64(10**7)}) == [3, 2, 10**7]


def test_shares_become_parts_by_largest_remainder() -> None:
    assert integer_weights({"a": 0.5, "b": 0.3, "c": 0.2}, 10) == [5, 3, 2]
    assert integer_weights({"a": 0.55, "b": 0.27, "c": 0.18}, 10) == [5, 3, 2], (
        "remainders .5, .7 and .8, two parts to give"
    )
    assert integer_weights(dict.fromkeys("abc", 1 / 3), 10) == [4, 3, 3], (
        "the earlier first where remainders are equal"
    )
    assert integer_weights({"a": 1.0}) == [10_000]
    assert integer_weights({"a": 1, "b": 1e-4}) == [9_999, 1], "one float makes all of them shares"


def test_shares_below_one_part_get_one() -> None:
    assert integer_weights({"a": 0.98, "b": 0.019, "c": 0.001}, 10) == [8, 1, 1]
    assert integer_weights({"a": 0.998, "b": 0.001, "c": 0.001}, 3) == [1, 1, 1]
    # 0.12 of 9 is more than one part, but of the 8 that c leaves, 0.12 / 0.999 are not.
    assert integer_weights({"a": 0.879, "b": 0.12, "c": 0.001}, 9) == [7, 1, 1]


@given(parts=st.lists(st.integers(1, 10**6), min_size=1, max_size=40), spare=st.integers(0, 10**6))
def test_parts_have_the_sum_and_stay_near_the_shares(parts: list[int], spare: int) -> None:
    total, denominator = sum(parts), len(parts) + spare
    weights = {str(number): part / total for number, part in enumerate(parts)}
    result = integer_weights(weights, denominator)
    assert sum(result) == denominator
    assert min(result) >= 1
    ordered = [part for _, part in sorted(zip(parts, result, strict=True))]
    assert all(a <= b + 1 for a, b in itertools.pairwise(ordered)), (
        "a larger share has no fewer parts, but for ties"
    )
    if min(parts) * denominator >= total * (1 + 1e-9):  # nobody below one part
        assert all(
            abs(part * total - denominator * share) < total * (1 + 1e-6)
            for part, share in zip(result, parts, strict=True)
        )


@pytest.mark.parametrize("weight", [0, 0.0, -1, -0.5, math.nan, math.inf, "0.5", None], ids=str)
def test_a_weight_that_is_not_a_positive_number_is_named(weight: float) -> None:
    message = complaint(lambda: integer_weights({"en": 0.5, "de": weight}))
    assert message.startswith(f"weights.de = {weight!r}: must be a positive number")


@pytest.mark.parametrize("total", [0.9989, 1.0011, 2.0])
def test_shares_with_another_sum_are_refused(total: float) -> None:
    message = complaint(lambda: integer_weights({"en": total - 0.25, "de": 0.25}))
    assert message.startswith(
        f"weights = 2 shares with sum {total:g}: shares must sum to 1 within 0.001"
    )
    assert "divide each by their sum" in message
    assert (
        sum(integer_weights({"en": 0.749, "de": 0.25}))
        == sum(integer_weights({"en": 0.751, "de": 0.25}))
        == DENOMINATOR
    )


def test_more_sources_than_parts() -> None:
    message = complaint(lambda: integer_weights({"a": 0.4, "b": 0.3, "c": 0.3}, 2))
    assert message == "denominator = 2: each of 3 sources needs a part; raise it to 3 or more"
    assert complaint(lambda: integer_weights({})).startswith("weights = {}: nothing to blend")


def test_temperature() -> None:
    sizes = {"en": 900, "de": 90, "nl": 10}
    assert temperature_shares(sizes, 1) == pytest.approx({"en": 0.9, "de": 0.09, "nl": 0.01})
    assert temperature_shares(sizes, 2) == pytest.approx(
        {name: size**0.5 / (30 + 90**0.5 + 10**0.5) for name, size in sizes.items()}
    )
    assert temperature_shares(sizes, math.inf) == dict.fromkeys(sizes, 1 / 3)
    assert temperature_shares({"a": 1e300, "b": 1e-300}, 1e-3) == {"a": 1, "b": 0}, "no overflow"


@given(
    sizes=st.lists(st.floats(1e-6, 1e15), min_size=1, max_size=10), temperature=st.floats(0.2, 100)
)
def test_temperature_shares_sum_to_1_and_keep_the_order(
    sizes: list[float], temperature: float
) -> None:
    result = list(
        temperature_shares(
            {str(number): size for number, size in enumerate(sizes)}, temperature
        ).values()
    )
    assert math.isclose(sum(result), 1)
    ordered = [share for _, share in sorted(zip(sizes, result, strict=True))]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, "1"], ids=str)
def test_wrong_temperature(temperature: float) -> None:
    assert complaint(lambda: temperature_shares({"a": 1}, temperature)).startswith(
        f"temperature = {temperature!r}: must be positive"
    )


def test_wrong_sizes() -> None:
    for size in (0, -1, math.nan, math.inf):
        assert complaint(lambda size=size: temperature_shares({"a": 1, "b": size}, 1)).startswith(
            f"sizes.b = {size!r}: must be"
        )
    assert complaint(lambda: temperature_shares({}, 1)).startswith(
        "sizes = {}: nothing to share among"
    )
