"""Mixtures of any plan: equal to a replay one by one, or refused."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm2_minimal.data.mixture import Mixture, WeightStage
from slm2_minimal.data.quota import MAX_PERIOD
from tests.complaints import data_error as complaint


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
