"""Blending: every prefix within one sequence of its share, any position at once, and a
plain greedy rule that does worse.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.data.mixture import integer_weights
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
