"""Blending sources by weight, exactly and without randomness (report section 2.1).

The unit is one sequence. Sources get their turns by a quota schedule, Tijdeman's
solution of the chairman assignment problem: with integer weights w over their sum P,
the j-th sequence of a source (j = 0, 1, ...) may not come before position floor(j P /
w) and must have come before position ceil((j + 1) P / w). Among the sequences already
released, the one with the earliest deadline is next. Every prefix of the order then
holds each source within one sequence of its share; "furthest below its share next" does
not keep that bound on skewed weights. A `Mixture` puts such schedules one after another
and knows how much text each source has.
"""

import heapq
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

MAX_PERIOD = 1_000_000  # positions tabulated, about a second and 12 MB
DENOMINATOR = 10_000  # parts that shares are rounded to; Table 1 has four decimals


class QuotaSchedule:
    """Which source, and which of its sequences, stands at any position of an endless
    order.

    The order repeats every P = sum(weights) positions, where each source has been taken
    exactly its weight's number of times. One period is tabulated, so any position is
    answered at once, without replay.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """Raises DataError for no weights, weights that are not positive integers, or a
        sum too large to tabulate.
        """
        for index, weight in enumerate(weights):
            if not isinstance(weight, int | np.integer) or weight <= 0:
                raise DataError(
                    f"weights[{index}] = {weight!r}: must be a positive integer; scale shares by a"
                    " common factor"
                )
        common = math.gcd(*map(int, weights))
        if not 0 < sum(weights) // max(common, 1) <= MAX_PERIOD:
            raise DataError(
                f"weights = {len(weights)} numbers with sum {sum(weights)}: the sum must lie"
                f" between 1 and {MAX_PERIOD:,}; name at least one source, and round the weights to"
                " fewer digits"
            )
        self.weights = [int(weight) // common for weight in weights]
        self.period = sum(self.weights)
        self.sources = np.asarray(_one_period(self.weights), dtype=np.int32)
        self.turns = np.empty(
            self.period, dtype=np.int64
        )  # turns[p]: how often the source at p has had its turn before, in this period
        for source, weight in enumerate(self.weights):
            self.turns[self.sources == source] = np.arange(weight)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(source, number of its sequences at earlier positions) at `position` >= 0."""
        if position < 0:
            raise IndexError(f"position = {position}: positions count from 0")
        periods, place = divmod(position, self.period)
        source = int(self.sources[place])
        return source, periods * self.weights[source] + int(self.turns[place])

    def taken(self, position: int) -> Int[np.ndarray, " sources"]:
        """How many sequences of each source lie before `position`, int64."""
        periods, place = divmod(position, self.period)
        return periods * np.asarray(self.weights) + np.bincount(
            self.sources[:place], minlength=len(self.weights)
        )

    def position(self, source: int, turn: int) -> int:
        """Where `source` has its turn number `turn`: the inverse of indexing."""
        periods, place = divmod(turn, self.weights[source])
        return periods * self.period + int(np.flatnonzero(self.sources == source)[place])


def _one_period(weights: list[int]) -> list[int]:
    """Earliest deadline first among the released sequences, over one period."""
    period = sum(weights)
    waiting = [
        (0, source, 0) for source in range(len(weights))
    ]  # (release, source, j), the next sequence of every source
    heapq.heapify(waiting)
    released: list[tuple[int, int, int]] = []  # (deadline, source, j)
    order = []
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            _, source, j = heapq.heappop(waiting)
            heapq.heappush(released, (-(-(j + 1) * period // weights[source]), source, j))
        deadline, source, j = heapq.heappop(released)
        assert position < deadline, "the quota schedule always meets its deadlines"
        order.append(source)
        heapq.heappush(waiting, ((j + 1) * period // weights[source], source, j + 1))
    return order


def integer_weights(weights: Mapping[str, float], denominator: int = DENOMINATOR) -> list[int]:
    """Parts for `QuotaSchedule`, in the order of the mapping.

    Integers are parts already and stay as they are. Otherwise the weights are shares,
    which must sum to 1 within 0.001 (the report's printed weights sum to 1.0001). They
    are scaled to the sum `denominator` and rounded by largest remainder, the earlier
    source first where remainders are equal; a share below one part gets one.

    Raises:
        DataError: no weights, a weight that is not a positive number, shares with
        another sum, or more sources than parts.
    """
    if not weights:
        raise DataError("weights = {}: nothing to blend; name at least one source")
    for name, weight in weights.items():
        if not isinstance(weight, numbers.Real) or not 0 < weight < math.inf:
            raise DataError(
                f"weights.{name} = {weight!r}: must be a positive number; leave out a source that"
                " is not to be read"
            )
    if all(isinstance(weight, numbers.Integral) for weight in weights.values()):
        return [int(weight) for weight in weights.values()]
    share = [_exact(weight) for weight in weights.values()]
    total = sum(share, Fraction(0))
    if abs(total - 1) > Fraction(1, 1000):
        raise DataError(
            f"weights = {len(share)} shares with sum {float(total):.6g}: shares must sum to 1"
            " within 0.001; divide each by their sum, or give integers, which are parts of"
            " their sum"
        )
    if len(share) > denominator:
        raise DataError(
            f"denominator = {denominator}: each of {len(share)} sources needs a part; raise it to"
            f" {len(share)} or more"
        )
    return _apportion(share, denominator)


def _apportion(share: list[Fraction], parts: int) -> list[int]:
    """Largest remainder, with at least one part for everybody."""
    result, free = [1] * len(share), list(range(len(share)))
    while True:
        left = parts - (len(share) - len(free))
        scale = left / sum(
            (share[i] for i in free), Fraction(0)
        )  # parts per unit of the shares that are not yet at their one part
        enough = [i for i in free if share[i] * scale >= 1]
        if enough == free:
            break
        free = enough
    for i in free:
        result[i] = math.floor(share[i] * scale)
    by_remainder = sorted(free, key=lambda i: share[i] * scale - result[i], reverse=True)
    for i in by_remainder[: parts - sum(result)]:
        result[i] += 1
    return result


def temperature_shares(sizes: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Shares proportional to size ** (1 / temperature): 1 is proportional to size,
    infinity the same for all.

    Raises:
        DataError: no sizes, a size that is not a positive number, or a temperature that
        is not positive.
    """
    if not isinstance(temperature, numbers.Real) or not temperature > 0:
        raise DataError(
            f"temperature = {temperature!r}: must be positive; 1 is proportional to size, inf the"
            " same share for all"
        )
    if not sizes:
        raise DataError("sizes = {}: nothing to share among; name at least one source")
    for name, size in sizes.items():
        if not isinstance(size, numbers.Real) or not 0 < size < math.inf:
            raise DataError(
                f"sizes.{name} = {size!r}: must be a positive number; leave out a source without"
                " text"
            )
    largest = max(sizes.values())
    power = {
        name: math.exp((math.log(size) - math.log(largest)) / temperature)
        for name, size in sizes.items()
    }
    total = math.fsum(power.values())
    return {name: value / total for name, value in power.items()}


@dataclass(frozen=True)
class Stage:
    """From position `start` of the global order on, the parts of every source, in the
    order of the sources; 0 leaves one out.
    """

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
        """From weights by name, shares or parts as in `integer_weights`. A source of
        `names` with weight 0 or none is left out.

        Raises DataError for a name that is not among `names`, and as `integer_weights`
        does.
        """
        for name in weights:
            if name not in names:
                raise DataError(
                    f"weights.{name} = {weights[name]!r}: no such source; known are"
                    f" {', '.join(names)}"
                )
        read = {name: weight for name, weight in weights.items() if weight != 0}
        parts = dict(zip(read, integer_weights(read, denominator), strict=True))
        return cls(start, tuple(parts.get(name, 0) for name in names))


class Mixture:
    """The global order over sources of limited text, in stages of different weights.

    Each stage is a quota schedule of its own from its `start` on; a source goes on in
    it where the stage before left off. Within a stage, every source stays less than one
    sequence from its share at every prefix. From position 0 on, a source stays less
    than k sequences from the sum of its shares, where k counts the stages begun,
    without those that ended on a whole number of their periods.

    Attributes:
        names, stages: as given, with the weights of every stage divided by their common
        factor.
        usable: per source, the number of sequences that are read, `subset` of those
        that there are, rounded up. A turn is
            `epoch, index = divmod(turn, usable)`: the index-th of the usable sequences,
            for the epoch-th time (both count from 0).
        limits: per source, the number of turns that `max_epochs` allows, infinity where
        there is no cap.
    """

    def __init__(
        self,
        names: Sequence[str],
        stages: Sequence[Stage],
        counts: Sequence[int],
        max_epochs: Sequence[float | None] | None = None,
        subset: Sequence[float] | None = None,
    ) -> None:
        """One count of sequences, cap (None for no cap) and subset in (0, 1] per
        source; without them, no caps and all of the text.

        Raises DataError for a source without sequences, a cap or subset that cannot be,
        and stages that do not start at 0, do not increase, have no weights, or leave a
        source out of all of them.
        """
        self.names, self.stages = tuple(names), _checked_stages(stages, names)
        caps, parts = max_epochs or [None] * len(names), subset or [1.0] * len(names)
        self.usable = tuple(_usable(*source) for source in zip(names, counts, parts, strict=True))
        self.limits = tuple(
            _limit(*source) for source in zip(names, self.usable, caps, strict=True)
        )
        self._caps = tuple(caps)
        self._starts = [stage.start for stage in self.stages]
        self._read = [
            [source for source, weight in enumerate(stage.weights) if weight]
            for stage in self.stages
        ]
        self._schedules = [
            QuotaSchedule([weight for weight in stage.weights if weight]) for stage in self.stages
        ]
        self._before = [
            [0] * len(names)
        ]  # _before[k]: how many sequences of each source lie before stage k
        for stage, start in enumerate(self._starts[1:]):
            self._before.append(self._taken(stage, start).tolist())

    def locate(self, position: int) -> tuple[int, int]:
        """(source, turn) at a position: which source, and how many of its sequences lie
        before, in all stages.

        Raises DataError where the source's `max_epochs` does not allow that turn, as
        `check` does; IndexError for a negative position.
        """
        stage = self._stage(position)
        place, turn = self._schedules[stage][position - self._starts[stage]]
        source = self._read[stage][place]
        turn += self._before[stage][source]
        if turn >= self.limits[source]:
            raise self._exhausted(source, position + 1)
        return source, turn

    def taken(self, position: int) -> Int[np.ndarray, " sources"]:
        """How many sequences of each source lie before `position`, int64."""
        return self._taken(self._stage(position), position)

    def epochs(self, position: int) -> dict[str, float]:
        """How often the usable sequences of each source have been read through by the
        time `position` is reached.
        """
        return {
            name: turns / usable
            for name, turns, usable in zip(
                self.names, self.taken(position).tolist(), self.usable, strict=True
            )
        }

    def check(self, positions: int) -> None:
        """Make sure that a run of so many sequences reads no source more often than its
        `max_epochs` allows.

        Raises DataError, which names the source that is exhausted first and the first
        position that could not be read.
        """
        over = [
            source
            for source, turns in enumerate(self.taken(positions).tolist())
            if turns > self.limits[source]
        ]
        if over:
            raise self._exhausted(min(over, key=self._end), positions)

    def _stage(self, position: int) -> int:
        if position < 0:
            raise IndexError(f"position = {position}: positions count from 0")
        return bisect_right(self._starts, position) - 1

    def _taken(self, stage: int, position: int) -> Int[np.ndarray, " sources"]:
        """`taken`, with the stage that counts up to `position` given."""
        taken = np.asarray(self._before[stage], dtype=np.int64)
        taken[self._read[stage]] += self._schedules[stage].taken(position - self._starts[stage])
        return taken

    def _end(self, source: int) -> int:
        """The first position at which `source` would have a turn past its cap; there
        must be one.
        """
        turn = int(self.limits[source])
        stage = bisect_right([before[source] for before in self._before], turn) - 1
        place = self._read[stage].index(source)
        return self._starts[stage] + self._schedules[stage].position(
            place, turn - self._before[stage][source]
        )

    def _exhausted(self, source: int, positions: int) -> DataError:
        field, usable, taken = (
            f"data.sources.{self.names[source]}",
            self.usable[source],
            int(self.taken(positions)[source]),
        )
        return DataError(
            f"{field}.max_epochs = {self._caps[source]}: a run of {positions:,} sequences would"
            f" read its {usable:,} sequences {taken / usable:.6g} times and exhaust them at"
            f" position {self._end(source):,}; raise {field}.max_epochs, lower its weight, add"
            " text, or shorten the run"
        )


def _checked_stages(stages: Sequence[Stage], names: Sequence[str]) -> tuple[Stage, ...]:
    """The stages with their weights divided by their common factor, which does not
    change the order.
    """
    if not names or not stages:
        raise DataError(
            f"data = {len(names)} sources in {len(stages)} stages: nothing to blend; name at least"
            " one of each"
        )
    reduced = []
    for number, stage in enumerate(stages):
        where, weights = f"data.stages[{number}]", stage.weights
        if number == 0 and stage.start != 0:
            raise DataError(
                f"{where}.start = {stage.start}: the first stage must start at position 0; put one"
                " before it"
            )
        if number > 0 and stage.start <= stages[number - 1].start:
            raise DataError(
                f"{where}.start = {stage.start}: must lie after {stages[number - 1].start}, the"
                " start before it; sort the stages"
            )
        if len(weights) != len(names):
            raise DataError(
                f"{where}.weights = {len(weights)} numbers: must be one for each of {len(names)}"
                " sources; 0 leaves one out"
            )
        for name, weight in zip(names, weights, strict=True):
            if not isinstance(weight, numbers.Integral) or weight < 0:
                raise DataError(
                    f"{where}.weights.{name} = {weight!r}: must be an integer, 0 or more;"
                    " Stage.named takes shares"
                )
        if not any(weights):
            raise DataError(
                f"{where}.weights = all 0: nothing to read; give at least one source a weight"
            )
        common = math.gcd(*map(int, weights))
        reduced.append(
            Stage(operator.index(stage.start), tuple(int(weight) // common for weight in weights))
        )
    for name, weights in zip(
        names, zip(*(stage.weights for stage in reduced), strict=True), strict=True
    ):
        if not any(weights):
            raise DataError(
                f"data.sources.{name}: has weight 0 in every stage; give it a weight in one, or"
                " remove the source"
            )
    return tuple(reduced)


def _usable(name: str, count: int, subset: float) -> int:
    if count < 1:
        raise DataError(
            f"data.sources.{name} = {count} sequences: has no text to train on; check its path,"
            " languages and domains"
        )
    if not 0 < subset <= 1:
        raise DataError(
            f"data.sources.{name}.subset = {subset}: must lie above 0 and not above 1; 1 reads all"
            " of the text"
        )
    return math.ceil(_exact(subset) * count)


def _limit(name: str, usable: int, max_epochs: float | None) -> float:
    if max_epochs is None or max_epochs == math.inf:
        return math.inf
    if not max_epochs > 0:
        raise DataError(
            f"data.sources.{name}.max_epochs = {max_epochs}: must be positive; leave it out for"
            " no cap"
        )
    return math.floor(_exact(max_epochs) * usable)


def _exact(value: float) -> Fraction:
    """The decimal that a float prints as, so that 0.29 of 100 is 29 and not a little
    less.
    """
    return Fraction(repr(float(value)))
