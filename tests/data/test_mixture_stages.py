"""Mixtures of several stages, subsets and caps against a replay one by one."""

import dataclasses
import math
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm2_minimal.data.mixture import Mixture, WeightStage
from slm2_minimal.data.quota import MAX_PERIOD, QuotaSchedule
from tests.complaints import data_error as complaint
from tests.data.table_1 import EXACT, PRINTED, TABLE_1

# The mixture


@dataclasses.dataclass
class Plan:
    """The arguments of a Mixture."""

    names: list[str]
    stages: list[WeightStage]
    counts: list[int]
    max_epochs: list[float | None]
    subset: list[float]

    def mixture(self, **changes: Any) -> Mixture:
        return Mixture(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
            | changes
        )

    @property
    def usable(self) -> list[int]:
        return [
            math.ceil(Fraction(str(part)) * count)
            for part, count in zip(self.subset, self.counts, strict=True)
        ]


@st.composite
def plans(draw: st.DrawFn, capped: bool = False) -> Plan:
    sources = draw(st.integers(1, 5))
    each = {"min_size": sources, "max_size": sources}
    lengths = draw(st.lists(st.integers(1, 60), min_size=0, max_size=3))
    stages = [
        WeightStage(start, tuple(draw(st.lists(st.integers(0, 12), **each).filter(any))))  # type: ignore[arg-type]
        for start in np.cumsum([0, *lengths]).tolist()
    ]
    for source in range(sources):  # nobody with weight 0 everywhere
        if not any(stage.weights[source] for stage in stages):
            weights = list(stages[-1].weights)
            weights[source] = draw(st.integers(1, 12))
            stages[-1] = WeightStage(stages[-1].start, tuple(weights))
    cap = (
        st.one_of(st.none(), st.integers(5, 45).map(lambda tenths: tenths / 10))
        if capped
        else st.none()
    )
    return Plan(
        [f"source{number}" for number in range(sources)],
        stages,
        draw(st.lists(st.integers(1, 40), **each)),  # type: ignore[arg-type]
        draw(st.lists(cap, **each)),  # type: ignore[arg-type]
        draw(st.lists(st.integers(1, 100).map(lambda percent: percent / 100), **each)),  # type: ignore[arg-type]
    )


def replay(plan: Plan, positions: int) -> list[tuple[int, int]]:
    """(source, turn) at the first positions, read from the front: in every stage, the
    released source with the earliest deadline.
    """
    order: list[tuple[int, int]] = []
    taken = [0] * len(plan.names)
    for number, stage in enumerate(plan.stages):
        end = plan.stages[number + 1].start if number + 1 < len(plan.stages) else positions
        total, here = sum(stage.weights), [0] * len(plan.names)
        for place in range(min(end, positions) - stage.start):
            released = [
                s
                for s, w in enumerate(stage.weights)
                if w and Fraction(here[s] * total, w) < place + 1
            ]
            source = min(
                released,
                key=lambda s: (math.ceil(Fraction((here[s] + 1) * total, stage.weights[s])), s),
            )
            order.append((source, taken[source]))
            here[source] += 1
            taken[source] += 1
    return order


@given(plan=plans())
@settings(max_examples=200)
def test_the_mixture_equals_a_replay(plan: Plan) -> None:
    mixture, positions = plan.mixture(), plan.stages[-1].start + 40
    order = replay(plan, positions)
    assert [mixture.locate(position) for position in range(positions)] == order
    taken = np.zeros(len(plan.names), dtype=np.int64)
    for position, (source, _) in enumerate(order):
        assert mixture.taken(position).tolist() == taken.tolist()
        taken[source] += 1
    assert mixture.usable == tuple(plan.usable)
    assert mixture.epochs(positions) == {
        n: t / u for n, t, u in zip(plan.names, taken.tolist(), plan.usable, strict=True)
    }


@given(plan=plans(capped=True), data=st.data())
@settings(max_examples=200)
def test_a_source_is_exhausted_at_exactly_the_position_that_a_replay_finds(
    plan: Plan, data: st.DataObject
) -> None:
    mixture, positions = plan.mixture(), plan.stages[-1].start + 60
    limits = [
        math.inf if cap is None else Fraction(str(cap)) * usable
        for cap, usable in zip(plan.max_epochs, plan.usable, strict=True)
    ]
    first: dict[int, int] = {}
    for position, (source, turn) in enumerate(replay(plan, positions)):
        if turn + 1 <= limits[source]:
            assert mixture.locate(position) == (source, turn)
            continue
        first.setdefault(source, position)
        message = complaint(lambda position=position: mixture.locate(position))
        assert message.startswith(
            f"data.sources.{plan.names[source]}.max_epochs = {plan.max_epochs[source]}: a run of"
            f" {position + 1} seq"
        )
        assert f"exhaust them at position {first[source]};" in message
    end = min(first.values(), default=positions)
    mixture.check_epochs(end)
    if first:
        named = next(plan.names[source] for source, position in first.items() if position == end)
        longer = data.draw(st.integers(end + 1, positions))
        message = complaint(lambda: mixture.check_epochs(longer))
        assert message.startswith(f"data.sources.{named}.max_epochs")
        assert f"exhaust them at position {end};" in message


@given(plan=plans())
@settings(max_examples=200)
def test_across_stages_the_error_stays_below_one_sequence_per_broken_stage(plan: Plan) -> None:
    mixture = plan.mixture()
    target = [Fraction(0)] * len(plan.names)
    broken = 0  # stages that ended within a period
    for stage, after in zip(mixture.stages, [*mixture.stages[1:], None], strict=True):
        period, length = (
            sum(stage.weights),
            (after.start if after else stage.start + 40) - stage.start,
        )
        for place in range(length + 1):
            aims = [
                aim + Fraction(place * weight, period)
                for aim, weight in zip(target, stage.weights, strict=True)
            ]
            errors = [
                abs(int(n) - aim)
                for n, aim in zip(mixture.taken(stage.start + place), aims, strict=True)
            ]
            assert max(errors) < broken + 1
            if place % period == 0:
                assert max(errors) < max(broken, Fraction(1, 10**9)), (
                    "the stage itself adds nothing after whole periods"
                )
        target = aims
        broken += length % period != 0


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


@pytest.mark.parametrize(
    ("changes", "start", "remedy"),
    [
        (
            {"names": [], "stages": [WeightStage(0, ())], "counts": []},
            "data = 0 sources in 1 stages",
            "name at least one",
        ),
        ({"stages": []}, "data = 2 sources in 0 stages", "name at least one"),
        (
            {"stages": [WeightStage(5, (1, 1))]},
            "data.stages[0].start = 5",
            "must start at position 0",
        ),
        (
            {"stages": [WeightStage(0, (1, 1)), WeightStage(7, (1, 2)), WeightStage(7, (2, 1))]},
            "data.stages[2].start = 7",
            "must lie after 7",
        ),
        (
            {"stages": [WeightStage(0, (1, 1)), WeightStage(-7, (1, 2))]},
            "data.stages[1].start = -7",
            "sort the stages",
        ),
        (
            {"stages": [WeightStage(0, (1,))]},
            "data.stages[0].weights = 1 numbers",
            "one for each of 2 sources",
        ),
        (
            {"stages": [WeightStage(0, (1, 1)), WeightStage(3, (0, 0))]},
            "data.stages[1].weights = all 0",
            "give at least one source a weight",
        ),
        (
            {"stages": [WeightStage(0, (1, -1))]},
            "data.stages[0].weights.b = -1",
            "an integer, 0 or more",
        ),
        (
            {"stages": [WeightStage(0, (0.5, 0.5))]},
            "data.stages[0].weights.a = 0.5",
            "WeightStage.named takes shares",
        ),  # type: ignore[arg-type]
        (
            {"stages": [WeightStage(0, (1, 0)), WeightStage(3, (2, 0))]},
            "data.sources.b: has weight 0 in every stage",
            "remove the source",
        ),
        (
            {"stages": [WeightStage(0, (MAX_PERIOD, 1))]},
            "weights = 2 numbers with sum 1000001",
            "round the weights",
        ),
        ({"counts": [3, 0]}, "data.sources.b: has no text to train on", "check its path"),
        ({"subset": [0.0, 1.0]}, "data.sources.a.subset = 0.0", "above 0"),
        ({"subset": [1.0, 1.5]}, "data.sources.b.subset = 1.5", "not above 1"),
        ({"subset": [1.0, math.nan]}, "data.sources.b.subset = nan", "not above 1"),
        ({"max_epochs": [None, 0]}, "data.sources.b.max_epochs = 0", "leave it out for no cap"),
        ({"max_epochs": [math.nan, 1]}, "data.sources.a.max_epochs = nan", "must be positive"),
    ],
    ids=str,
)
def test_wrong_mixtures(changes: dict[str, Any], start: str, remedy: str) -> None:
    plan = Plan(["a", "b"], [WeightStage(0, (1, 1))], [3, 3], [None, None], [1.0, 1.0])
    message = complaint(lambda: plan.mixture(**changes))
    assert message.startswith(start)
    assert remedy in message


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
