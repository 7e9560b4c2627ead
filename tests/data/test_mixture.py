"""Blending: every prefix within one sequence of its share, any position at once, and a plain greedy rule that does worse."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.config import DataError
from slm2_minimal.data.mixture import MAX_PERIOD, QuotaSchedule

# Table 1's printed weights (secondary), in units of 0.0001; they sum to 1.0001.
TABLE_1 = [79, 120, 318, 13, 45, 91, 18, 2521, 155, 152, 97, 96, 97, 100, 855, 130, 3292, 231, 19, 23, 88, 63, 66, 11, 132, 363, 724, 102]

weights_of_any_kind = st.lists(st.one_of(st.integers(1, 5), st.integers(1, 200)), min_size=1, max_size=12)


def furthest_from_share(order: np.ndarray, weights: list[int]) -> float:
    """The largest |taken - share| of any source after any prefix of the order, in sequences."""
    taken = np.cumsum(order[:, None] == np.arange(len(weights)), axis=0)
    shares = np.arange(1, len(order) + 1)[:, None] * np.asarray(weights) / sum(weights)
    return float(np.abs(taken - shares).max())


def most_behind_first(weights: list[int]) -> np.ndarray:
    """The rule that suggests itself: next is the source that is furthest below its share."""
    taken, order = np.zeros(len(weights)), []
    for position in range(sum(weights)):
        order.append(int(np.argmax((position + 1) * np.asarray(weights) / sum(weights) - taken)))
        taken[order[-1]] += 1
    return np.asarray(order)


def test_table_1_stays_within_one_sequence() -> None:
    assert (len(TABLE_1), sum(TABLE_1)) == (28, 10_001)
    schedule = QuotaSchedule(TABLE_1)
    assert schedule.period == 10_001
    assert furthest_from_share(schedule.sources, TABLE_1) < 1
    assert np.bincount(schedule.sources).tolist() == TABLE_1


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
    assert np.bincount(schedule.sources, minlength=len(weights)).tolist() == [w // common for w in weights]


def test_by_hand() -> None:
    # Weights 3, 2, 1 over 6. Deadlines of the three: 2 4 6 / 3 6 / 6; releases: 0 2 4 / 0 3 / 0.
    schedule = QuotaSchedule([3, 2, 1])
    assert schedule.sources.tolist() == [0, 1, 0, 1, 0, 2]
    assert [schedule[p] for p in range(8)] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (2, 0), (0, 3), (1, 2)]


@given(weights=weights_of_any_kind, periods=st.integers(0, 3))
def test_turns_count_up_in_every_source(weights: list[int], periods: int) -> None:
    """Read from the front, each source has its turns 0, 1, 2, ..., across the end of a period too."""
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
    assert schedule[periods * schedule.period + place] == (source, periods * schedule.weights[source] + turn)


def test_one_source() -> None:
    assert [QuotaSchedule([7])[p] for p in (0, 1, 10**15)] == [(0, 0), (0, 1), (0, 10**15)]


def test_a_common_factor_does_not_matter() -> None:
    small, large = QuotaSchedule([3, 2, 1]), QuotaSchedule([30_000_000, 20_000_000, 10_000_000])
    assert large.period == 6
    assert large.weights == [3, 2, 1]
    assert large.sources.tolist() == small.sources.tolist()


def test_numpy_weights() -> None:
    assert QuotaSchedule(np.asarray([3, 2, 1])).sources.tolist() == [0, 1, 0, 1, 0, 2]  # type: ignore[arg-type]


def complaint(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("weights", "place", "remedy"),
    [
        ([1, 0], "weights[1] = 0", "positive integer"),
        ([-2], "weights[0] = -2", "positive integer"),
        ([1, 0.5], "weights[1] = 0.5", "scale shares by a common factor"),
        ([1, 2, "3"], "weights[2] = '3'", "positive integer"),
        ([], "weights = 0 numbers with sum 0", "name at least one source"),
        ([MAX_PERIOD, 1], "weights = 2 numbers with sum 10000001", "round the weights to fewer digits"),
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
