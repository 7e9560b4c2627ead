"""Mixtures of several stages, subsets and caps, by hand and far from the start."""

import math
import time
from fractions import Fraction

import pytest

from slm2_minimal.data.mixture import Mixture, WeightStage
from slm2_minimal.data.quota import QuotaSchedule
from tests.complaints import data_error as complaint
from tests.data.table_1 import EXACT, PRINTED, TABLE_1


def test_errors_of_stages_do_add_up() -> None:
    """The bound of one sequence is one per stage: two stages that both end just before
    the last source's turn.
    """
    mixture = Mixture("ab", [WeightStage(0, (9, 1)), WeightStage(9, (8, 1))], [100, 100])
    assert mixture.taken(9 + 8).tolist() == [17, 0]
    assert Fraction(9, 10) + Fraction(8, 9) > 1


def test_stage_borders_by_hand() -> None:
    # a a b | b b c b b c | a c a c ...: parts (2, 1, 0) up to 3, (0, 2, 1) up to 9,
    # then (1, 0, 1).
    mixture = Mixture(
        "abc",
        [WeightStage(0, (4, 2, 0)), WeightStage(3, (0, 2, 1)), WeightStage(9, (1, 0, 1))],
        [4, 3, 3],
    )
    assert mixture.stages == (
        WeightStage(0, (2, 1, 0)),
        WeightStage(3, (0, 2, 1)),
        WeightStage(9, (1, 0, 1)),
    )
    assert [mixture.locate(position) for position in range(13)] == [
        *[(0, 0), (0, 1), (1, 0)],
        *[(1, 1), (1, 2), (2, 0), (1, 3), (1, 4), (2, 1)],
        *[(0, 2), (2, 2), (0, 3), (2, 3)],
    ]  # fmt: skip
    assert mixture.taken(3).tolist() == [2, 1, 0]
    assert mixture.taken(9).tolist() == [2, 5, 2]
    assert mixture.epochs(9) == {"a": 0.5, "b": 5 / 3, "c": 2 / 3}
    assert mixture.locate(9 + 2 * 10**12) == (0, 2 + 10**12)
    assert mixture.taken(9 + 2 * 10**12).tolist() == [2 + 10**12, 5, 2 + 10**12]


def test_one_stage_is_the_quota_schedule() -> None:
    mixture, schedule = (
        Mixture(list(PRINTED), [WeightStage(0, tuple(TABLE_1))], [1] * 28),
        QuotaSchedule(TABLE_1),
    )
    for position in (*range(50), 10**12, 10**15 + 7):
        assert mixture.locate(position) == schedule[position]


def test_a_far_position_of_table_1() -> None:
    """Whole periods by multiplication, the rest by counting its positions one by
    one.
    """
    mixture = Mixture(list(PRINTED), [WeightStage(0, tuple(TABLE_1))], [1] * 28)
    periods, place = divmod(10**12, 10_001)
    head = [mixture.locate(position)[0] for position in range(place)]
    assert mixture.taken(10**12).tolist() == [
        periods * weight + head.count(source) for source, weight in enumerate(TABLE_1)
    ]
    source, turn = mixture.locate(10**12)
    assert source == mixture.locate(place)[0]
    assert turn == periods * TABLE_1[source] + head.count(source)


def test_subsets_round_up_in_decimals() -> None:
    """0.07 of 100 sequences are 7, although 0.07 as a float times 100 is a little
    more.
    """
    counts, subset = [100, 3, 10, 7], [0.07, 0.01, 1.0, 0.5]
    assert Mixture("abcd", [WeightStage(0, (1, 1, 1, 1))], counts, subset=subset).usable == (
        7,
        1,
        10,
        4,
    )


def test_caps_are_kept_in_decimals() -> None:
    """0.29 epochs of 100 sequences are 29, although 0.29 as a float times 100 is a
    little less.
    """
    mixture = Mixture(
        "abc", [WeightStage(0, (1, 1, 1))], [10, 100, 10], max_epochs=[1.1, 0.29, math.inf]
    )
    assert mixture.limits == (11, 29, math.inf)


def test_exhaustion_by_hand() -> None:
    """Every third from a source of 4 sequences, half of them usable, 3 times: 6 turns,
    so the 7th, at position 20, is refused.
    """
    mixture = Mixture(
        ["web", "books"],
        [WeightStage(0, (2, 1))],
        [10**6, 4],
        max_epochs=[None, 3],
        subset=[1, 0.5],
    )
    assert [mixture.locate(position)[0] for position in range(3)] == [0, 0, 1]
    assert mixture.locate(17) == (1, 5)
    mixture.check_epochs(20)
    expected = (
        "data.sources.books.max_epochs = 3: a run of 21 sequences would read its 2 sequences 3.5"
        " times and exhaust them at position 20; raise data.sources.books.max_epochs, lower its"
        " weight, add text, or shorten the run"
    )
    assert complaint(lambda: mixture.check_epochs(21)) == expected
    assert complaint(lambda: mixture.locate(20)) == expected
    assert mixture.locate(21) == (0, 14), "the other source can be read on"
    assert "a run of 1,000,000,000,000 sequences" in complaint(lambda: mixture.check_epochs(10**12))


def test_a_source_of_an_early_stage_is_not_exhausted_by_a_late_one() -> None:
    mixture = Mixture(
        "ab", [WeightStage(0, (1, 1)), WeightStage(6, (1, 0))], [10**9, 3], max_epochs=[None, 1]
    )
    mixture.check_epochs(10**9)
    assert complaint(
        lambda: Mixture(
            "ab", [WeightStage(0, (1, 1)), WeightStage(8, (1, 0))], [10**9, 3], max_epochs=[None, 1]
        ).check_epochs(10**9)
    ).endswith(
        "exhaust them at position 7; raise data.sources.b.max_epochs, lower its weight, add text,"
        " or shorten the run"
    )


def test_stages_from_shares_by_name() -> None:
    names = ["en", "de", "code"]
    assert WeightStage.named(5, {"code": 0.25, "en": 0.75}, names) == WeightStage(
        5, (7_500, 0, 2_500)
    )
    assert WeightStage.named(5, {"code": 1, "en": 3, "de": 0}, names) == WeightStage(5, (3, 0, 1))
    assert WeightStage.named(
        0, {"en": 0.5, "de": 0.5, "code": 0.0}, names, denominator=4
    ) == WeightStage(0, (2, 2, 0))
    message = complaint(lambda: WeightStage.named(0, {"en": 0.5, "fr": 0.5}, names))
    assert message == "weights.fr = 0.5: no such source; known are en, de, code"
    assert complaint(lambda: WeightStage.named(0, {"en": -0.5, "de": 1.5}, names)).startswith(
        "weights.en = -0.5: must be a positive number"
    )
    assert complaint(lambda: WeightStage.named(0, {"en": 0}, names)).startswith(
        "weights = {}: nothing to blend"
    )


def test_what_is_left_out_does_not_slow_the_others() -> None:
    names = list(PRINTED)
    late = WeightStage.named(100_000, {"C4": 0.5, "Starcoder": 0.5}, names)
    mixture = Mixture(names, [WeightStage(0, tuple(TABLE_1)), late], [1] * 28)
    before, after = mixture.taken(100_000), mixture.taken(100_000 + 10**6)
    assert {name: n for name, n in zip(names, (after - before).tolist(), strict=True) if n} == {
        "C4": 500_000,
        "Starcoder": 500_000,
    }


def test_positions_of_a_mixture_count_from_0() -> None:
    mixture = Mixture("ab", [WeightStage(0, (1, 1)), WeightStage(4, (1, 2))], [3, 3])
    for call in (mixture.locate, mixture.taken, mixture.epochs, mixture.check_epochs):
        with pytest.raises(IndexError, match="position = -1"):
            call(-1)


def test_table_1_builds_and_answers_fast() -> None:
    """Generous by a factor of ten and more; a replay from position 0 would never
    end.
    """
    started = time.perf_counter()
    mixture = Mixture(
        list(EXACT),
        [WeightStage.named(0, EXACT, list(EXACT), 100_000), WeightStage(10**9, tuple(TABLE_1))],
        [10**6] * 28,
    )
    for position in range(10**12, 10**12 + 1000):
        mixture.locate(position)
    assert time.perf_counter() - started < 5
