"""Blending: every prefix within one sequence of its share, any position at once, and a
plain greedy rule that does worse.
"""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.data.mixture import DENOMINATOR, integer_weights, temperature_shares
from slm2_minimal.data.quota import MAX_PERIOD, QuotaSchedule
from tests.complaints import data_error as complaint
from tests.data.table_1 import EXACT, PRINTED, TABLE_1

weights_of_any_kind = st.lists(
    st.one_of(st.integers(1, 5), st.integers(1, 200)), min_size=1, max_size=12
)


def furthest_from_share(order: Sequence[int] | np.ndarray, weights: Sequence[int]) -> Fraction:
    """The largest |taken - share| of any source after any prefix of the order, in
    sequences; exact, in integers.
    """
    period, worst = sum(weights), 0
    positions = np.arange(1, len(order) + 1, dtype=np.int64)
    for source, weight in enumerate(weights):
        taken = np.cumsum(np.asarray(order) == source, dtype=np.int64)
        worst = max(worst, int(np.abs(period * taken - weight * positions).max()))
    return Fraction(worst, period)


def most_behind_first(weights: list[int]) -> np.ndarray:
    """The rule that suggests itself: next is the source that is furthest below its
    share.
    """
    taken, order = np.zeros(len(weights)), []
    for position in range(sum(weights)):
        order.append(int(np.argmax((position + 1) * np.asarray(weights) / sum(weights) - taken)))
        taken[order[-1]] += 1
    return np.asarray(order)


# The quota schedule


def test_table_1_stays_within_one_sequence() -> None:
    assert (len(TABLE_1), sum(TABLE_1)) == (28, 10_001)
    schedule = QuotaSchedule(TABLE_1)
    assert schedule.period == 10_001
    assert furthest_from_share(schedule.sources, TABLE_1) < 1
    assert np.bincount(schedule.sources).tolist() == TABLE_1


def test_the_printed_weights_are_those_of_the_package_table() -> None:
    assert [round(10_000 * weight) for weight in PRINTED.values()] == TABLE_1


@pytest.mark.parametrize("denominator", [10_000, 100_000])
@pytest.mark.parametrize("weights", [PRINTED, EXACT], ids=["printed", "tokens over total"])
def test_table_1_as_shares_stays_within_one_sequence(
    weights: dict[str, float], denominator: int
) -> None:
    parts = integer_weights(weights, denominator)
    schedule = QuotaSchedule(parts)
    assert sum(parts) == denominator == schedule.period * math.gcd(*parts)
    assert furthest_from_share(schedule.sources, schedule.weights) < 1
    assert np.bincount(schedule.sources).tolist() == schedule.weights
    total = sum(weights.values())
    assert all(
        abs(part - denominator * weight / total) < 1
        for part, weight in zip(parts, weights.values(), strict=True)
    )


def test_most_behind_first_does_not() -> None:
    assert furthest_from_share(most_behind_first(TABLE_1), TABLE_1) > 1
    skewed = [1, 1, 1, 1, 1, 1, 6, 6]
    assert furthest_from_share(most_behind_first(skewed), skewed) >= 1
    assert furthest_from_share(QuotaSchedule(skewed).sources, skewed) < 1


@given(weights=weights_of_any_kind)
@example(weights=[1] * 12 + [200])
@example(weights=[1, 200, 200])
@example(weights=[199, 198, 197, 2, 2, 1])
@settings(max_examples=300)
def test_every_prefix_is_within_one_sequence_of_its_share(weights: list[int]) -> None:
    schedule = QuotaSchedule(weights)
    assert furthest_from_share(schedule.sources, weights) < 1
    common = sum(weights) // schedule.period
    assert np.bincount(schedule.sources, minlength=len(weights)).tolist() == [
        w // common for w in weights
    ]


def test_by_hand() -> None:
    # Weights 3, 2, 1 over 6. Deadlines of the three: 2 4 6 / 3 6 / 6; releases: 0 2 4 /
    # 0 3 / 0.
    schedule = QuotaSchedule([3, 2, 1])
    assert schedule.sources.tolist() == [0, 1, 0, 1, 0, 2]
    assert [schedule[p] for p in range(8)] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (0, 2),
        (2, 0),
        (0, 3),
        (1, 2),
    ]
    assert schedule.taken(5).tolist() == [3, 2, 0]
    assert schedule.taken(6 * 10**12 + 2).tolist() == [3 * 10**12 + 1, 2 * 10**12 + 1, 10**12]
    assert [schedule.position(0, turn) for turn in range(4)] == [0, 2, 4, 6]
    assert schedule.position(2, 10**12) == 6 * 10**12 + 5


@given(weights=weights_of_any_kind, periods=st.integers(0, 3))
def test_turns_count_up_in_every_source(weights: list[int], periods: int) -> None:
    """Read from the front, each source has its turns 0, 1, 2, ..., across the end of a
    period too.
    """
    schedule = QuotaSchedule(weights)
    seen = [0] * len(weights)
    for position in range(schedule.period * periods + schedule.period // 2):
        source, turn = schedule[position]
        assert turn == seen[source]
        seen[source] += 1


@given(weights=weights_of_any_kind, periods=st.integers(0, 10**12), data=st.data())
def test_any_position_without_replay(weights: list[int], periods: int, data: st.DataObject) -> None:
    schedule = QuotaSchedule(weights)
    place = data.draw(st.integers(0, schedule.period - 1))
    source, turn = schedule[place]
    position = periods * schedule.period + place
    assert schedule[position] == (source, periods * schedule.weights[source] + turn)
    assert schedule.position(*schedule[position]) == position
    assert schedule.taken(position)[source] == schedule[position][1]
    assert schedule.taken(position).sum() == position


def test_one_source() -> None:
    assert [QuotaSchedule([7])[p] for p in (0, 1, 10**15)] == [(0, 0), (0, 1), (0, 10**15)]


def test_a_common_factor_does_not_matter() -> None:
    small, large = QuotaSchedule([3, 2, 1]), QuotaSchedule([30_000_000, 20_000_000, 10_000_000])
    assert large.period == 6
    assert large.weights == [3, 2, 1]
    assert large.sources.tolist() == small.sources.tolist()


def test_numpy_weights() -> None:
    assert QuotaSchedule(np.asarray([3, 2, 1])).sources.tolist() == [0, 1, 0, 1, 0, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "place", "remedy"),
    [
        ([1, 0], "weights[1] = 0", "positive integer"),
        ([-2], "weights[0] = -2", "positive integer"),
        ([1, 0.5], "weights[1] = 0.5", "scale shares by a common factor"),
        ([1, 2, "3"], "weights[2] = '3'", "positive integer"),
        ([], "weights = 0 numbers with sum 0", "name at least one source"),
        (
            [MAX_PERIOD, 1],
            "weights = 2 numbers with sum 1000001",
            "round the weights to fewer digits",
        ),
    ],
    ids=str,
)
def test_wrong_weights(weights: list[int], place: str, remedy: str) -> None:
    message = complaint(lambda: QuotaSchedule(weights))
    assert message.startswith(place)
    assert remedy in message


def test_positions_count_from_0() -> None:
    with pytest.raises(IndexError, match="position = -1"):
        QuotaSchedule([1, 2])[-1]


# Shares and parts


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
