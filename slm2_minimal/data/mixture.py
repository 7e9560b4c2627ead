"""Sources of limited text in one global order, blended by weights that may change.

`QuotaSchedule` blends for ever by one set of weights. A `Mixture` puts such schedules
one after another, and knows how much text each source has and how often it may be read.
"""

import math
import numbers
import operator
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from jaxtyping import Int

from slm2_minimal.config import DataError
from slm2_minimal.data.quota import QuotaSchedule

DENOMINATOR = 10_000  # parts that shares are rounded to; Table 1 has four decimals


def integer_weights(weights: Mapping[str, float], denominator: int = DENOMINATOR) -> list[int]:
    """Parts for `QuotaSchedule`, in the order of the mapping.

    Integers are parts already. Otherwise the weights are shares, with a sum of 1 within
    0.001 (the report's printed weights sum to 1.0001). They are scaled to the sum
    `denominator` and rounded by largest remainder, of equal ones the earlier source
    first; a share below one part gets one.

    Raises:
        DataError: no weights, a weight that is not a positive number, shares with
        another sum, or more sources than parts.
    """
    if not weights:
        raise DataError("weights = {}: nothing to blend; name at least one source")
    _check_positive("weights", weights, "leave out a source that is not to be read")
    if all(isinstance(weight, numbers.Integral) for weight in weights.values()):
        return [int(weight) for weight in weights.values()]

    shares = [_exact(weight) for weight in weights.values()]
    total = sum(shares, Fraction(0))
    if abs(total - 1) > Fraction(1, 1000):
        raise DataError(
            f"weights = {len(shares)} shares with sum {float(total):.6g}: shares must sum to 1"
            " within 0.001; divide each by their sum, or give integers as parts"
        )
    if (needed := len(shares)) > denominator:
        complaint = f"each of {needed} sources needs a part; raise it to {needed} or more"
        raise DataError(f"denominator = {denominator}: {complaint}")
    return _apportion(shares, denominator)


def _apportion(shares: list[Fraction], parts: int) -> list[int]:
    """Largest remainder, with at least one part for everybody."""
    # whose share is below one part gets one; the others divide what is left
    large: list[int] = []
    still_large = list(range(len(shares)))
    while still_large != large:
        large = still_large
        left = parts - (len(shares) - len(large))
        scale = left / sum((shares[i] for i in large), Fraction(0))
        still_large = [i for i in large if shares[i] * scale >= 1]

    result = [1] * len(shares)
    for i in large:
        result[i] = math.floor(shares[i] * scale)
    by_remainder = sorted(large, key=lambda i: shares[i] * scale - result[i], reverse=True)
    for i in by_remainder[: parts - sum(result)]:
        result[i] += 1
    return result


def temperature_shares(sizes: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Shares proportional to size ** (1 / temperature): infinity is the same for all.

    Raises DataError for no sizes, or a size or temperature that is not positive.
    """
    if not isinstance(temperature, numbers.Real) or not temperature > 0:
        remedy = "1 is proportional to size, inf the same share for all"
        raise DataError(f"temperature = {temperature!r}: must be positive; {remedy}")
    if not sizes:
        raise DataError("sizes = {}: nothing to share among; name at least one source")
    _check_positive("sizes", sizes, "leave out a source without text")

    # relative to the largest, so that no power overflows
    largest = math.log(max(sizes.values()))
    powers = [math.exp((math.log(size) - largest) / temperature) for size in sizes.values()]
    total = math.fsum(powers)
    return {name: power / total for name, power in zip(sizes, powers, strict=True)}


def _check_positive(what: str, values: Mapping[str, float], remedy: str) -> None:
    for name, value in values.items():
        if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
            raise DataError(f"{what}.{name} = {value!r}: must be a positive number; {remedy}")


def _exact(value: float) -> Fraction:
    """The decimal that a float prints as: 0.29 of 100 is 29 and not a little less."""
    return Fraction(repr(float(value)))


@dataclass(frozen=True)
class WeightStage:
    """The parts of every source, in order, from `start` on; 0 leaves one out."""

    start: int
    weights: tuple[int, ...]

    @classmethod
    def named(
        cls,
        start: int,
        weights: Mapping[str, float],
        names: Sequence[str],
        denominator: int = DENOMINATOR,
    ) -> Self:
        """From weights by name, as in `integer_weights`; with 0 or none, a source of
        `names` is left out. Raises DataError for other names, and as `integer_weights`.
        """
        for name, weight in weights.items():
            if name not in names:
                known = ", ".join(names)
                raise DataError(f"weights.{name} = {weight!r}: no such source; known are {known}")
        nonzero = {name: weight for name, weight in weights.items() if weight != 0}
        parts = dict(zip(nonzero, integer_weights(nonzero, denominator), strict=True))
        return cls(start, tuple(parts.get(name, 0) for name in names))


class Mixture:
    """The global order over sources of limited text, in stages of different weights.

    Each stage is a quota schedule of its own; a source goes on where the stage before
    left off. Within a stage, every source stays less than one sequence from its share
    at every prefix. From position 0 on, it stays less than k from the sum of its
    shares, where k counts the stages begun, but for those that were whole periods.

    Attributes:
        stages: with the weights of each divided by their common factor.
        usable: per source, the number of sequences that are read: `subset` of those
        that there are, rounded up. A source's turn t reads the usable sequence
        t % usable, for the (t // usable)-th time; both count from 0.
        limits: per source, the turns that `max_epochs` allows, infinity without one.
    """

    def __init__(
        self,
        names: Sequence[str],
        stages: Sequence[WeightStage],
        counts: Sequence[int],
        max_epochs: Sequence[float | None] | None = None,
        subset: Sequence[float] | None = None,
    ) -> None:
        """One count of sequences, cap (None for none) and subset in (0, 1] per source.

        Raises DataError for a source without sequences or without a weight in any
        stage, a cap or subset that cannot be, and stages that are not in order.
        """
        self.names = tuple(names)
        self.stages = _checked_stages(stages, names)
        self.max_epochs = tuple(max_epochs or [None] * len(names))
        amounts = zip(names, counts, subset or [1.0] * len(names), strict=True)
        self.usable = tuple(_usable(*amount) for amount in amounts)
        caps = zip(names, self.usable, self.max_epochs, strict=True)
        self.limits = tuple(_limit(*cap) for cap in caps)

        self._starts = [stage.start for stage in self.stages]
        self._scheduled: list[_Scheduled] = []
        before = np.zeros(len(names), dtype=np.int64)
        for stage in self.stages:
            if self._scheduled:
                before = self._scheduled[-1].taken(stage.start)
            self._scheduled.append(_Scheduled(stage, before))

    def locate(self, position: int) -> tuple[int, int]:
        """(source, turn) at a position: how many of the source's sequences lie before.

        Raises DataError where `max_epochs` does not allow that turn; IndexError for a
        negative position.
        """
        source, turn = self._stage_at(position).locate(position)
        if turn >= self.limits[source]:
            raise self._exhausted(source, position + 1)
        return source, turn

    def taken(self, position: int) -> Int[np.ndarray, " sources"]:
        """How many sequences of each source lie before `position`, int64."""
        return self._stage_at(position).taken(position)

    def epochs(self, position: int) -> dict[str, float]:
        """How often each source's usable sequences were read before `position`."""
        per_source = zip(self.names, self.taken(position).tolist(), self.usable, strict=True)
        return {name: turns / usable for name, turns, usable in per_source}

    def check_epochs(self, positions: int) -> None:
        """Raise DataError where a run of so many sequences exceeds a `max_epochs`: of
        the source that is exhausted first.
        """
        turns = self.taken(positions).tolist()
        over = [source for source, limit in enumerate(self.limits) if turns[source] > limit]
        if over:
            raise self._exhausted(min(over, key=self._exhausted_at), positions)

    def _stage_at(self, position: int) -> "_Scheduled":
        if position < 0:
            raise IndexError(f"position = {position}: positions count from 0")
        return self._scheduled[bisect_right(self._starts, position) - 1]

    def _exhausted_at(self, source: int) -> int:
        """The position of the first turn of `source` past its cap, if it has one."""
        turn = int(self.limits[source])
        before = [int(stage.before[source]) for stage in self._scheduled]
        return self._scheduled[bisect_right(before, turn) - 1].position(source, turn)

    def _exhausted(self, source: int, positions: int) -> DataError:
        field = f"data.sources.{self.names[source]}.max_epochs"
        usable = self.usable[source]
        epochs = int(self.taken(positions)[source]) / usable
        return DataError(
            f"{field} = {self.max_epochs[source]}: a run of {positions:,} sequences would read its"
            f" {usable:,} sequences {epochs:.6g} times and exhaust them at position"
            f" {self._exhausted_at(source):,}; raise {field}, lower its weight, add text, or"
            " shorten the run"
        )


class _Scheduled:
    """A stage whose schedule knows only the sources with a weight, and how many
    sequences of every source lie `before` it.
    """

    def __init__(self, stage: WeightStage, before: Int[np.ndarray, " sources"]) -> None:
        self.start = stage.start
        self.before = before
        self.sources = [source for source, weight in enumerate(stage.weights) if weight]
        self.schedule = QuotaSchedule([weight for weight in stage.weights if weight])

    def locate(self, position: int) -> tuple[int, int]:
        place, turn = self.schedule[position - self.start]
        source = self.sources[place]
        return source, int(self.before[source]) + turn

    def taken(self, position: int) -> Int[np.ndarray, " sources"]:
        taken = self.before.copy()
        taken[self.sources] += self.schedule.taken(position - self.start)
        return taken

    def position(self, source: int, turn: int) -> int:
        place = self.sources.index(source)
        return self.start + self.schedule.position(place, turn - int(self.before[source]))


def _checked_stages(stages: Sequence[WeightStage], names: Sequence[str]) -> tuple[WeightStage, ...]:
    """The stages, the weights of each divided by their common factor."""
    if not names or not stages:
        both = f"{len(names)} sources in {len(stages)} stages"
        raise DataError(f"data = {both}: nothing to blend; name at least one of each")

    reduced: list[WeightStage] = []
    for number, stage in enumerate(stages):
        start = operator.index(stage.start)
        where = f"data.stages[{number}].start = {start}"
        if number == 0 and start != 0:
            raise DataError(f"{where}: the first stage must start at position 0; put one before it")
        if number and start <= (before := reduced[-1].start):
            raise DataError(f"{where}: must lie after {before}, the one before; sort the stages")
        reduced.append(WeightStage(start, _reduced(stage.weights, names, number)))

    for source, name in enumerate(names):
        if not any(stage.weights[source] for stage in reduced):
            remedy = "give it a weight in one, or remove the source"
            raise DataError(f"data.sources.{name}: has weight 0 in every stage; {remedy}")
    return tuple(reduced)


def _reduced(weights: Sequence[int], names: Sequence[str], number: int) -> tuple[int, ...]:
    where = f"data.stages[{number}].weights"
    if len(weights) != len(names):
        expected = f"one for each of {len(names)} sources"
        raise DataError(f"{where} = {len(weights)} numbers: must be {expected}; 0 leaves one out")
    for name, weight in zip(names, weights, strict=True):
        if not isinstance(weight, numbers.Integral) or weight < 0:
            remedy = "WeightStage.named takes shares"
            raise DataError(f"{where}.{name} = {weight!r}: must be an integer, 0 or more; {remedy}")
    if not any(weights):
        raise DataError(f"{where} = all 0: nothing to read; give at least one source a weight")
    common = math.gcd(*map(int, weights))
    return tuple(int(weight) // common for weight in weights)


def _usable(name: str, count: int, subset: float) -> int:
    if count < 1:
        raise DataError(
            f"data.sources.{name}: has no text to train on; check its path, languages and domains,"
            " and data.validation_percent"
        )
    if not 0 < subset <= 1:
        complaint = "must lie above 0 and not above 1; 1 reads all of the text"
        raise DataError(f"data.sources.{name}.subset = {subset}: {complaint}")
    return math.ceil(_exact(subset) * count)


def _limit(name: str, usable: int, max_epochs: float | None) -> float:
    if max_epochs is None or max_epochs == math.inf:
        return math.inf
    if not max_epochs > 0:
        where = f"data.sources.{name}.max_epochs = {max_epochs}"
        raise DataError(f"{where}: must be positive; leave it out for no cap")
    return math.floor(_exact(max_epochs) * usable)
