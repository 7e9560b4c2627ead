"""Blending by weight, exactly and without randomness: the quota schedule.

The unit is one sequence. This is Tijdeman's solution of the chairman assignment
problem: with integer weights w over their sum P, the j-th sequence of a source (j = 0,
1, ...) may not come before position floor(j P / w) and must have come before position
ceil((j + 1) P / w). Among the sequences already released, the one with the earliest
deadline is next. Every prefix of the order then holds each source within one sequence
of its share; "furthest below its share next" does not keep that bound on skewed
weights.
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from slm2_minimal.config import DataError

MAX_PERIOD = 1_000_000  # positions tabulated, about a second and 12 MB


class QuotaSchedule:
    """Which source, and which of its sequences, stands at any position, without replay.

    The order repeats every P = sum(weights) positions; one period is tabulated.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """Raises DataError for weights that are no positive integers or too large."""
        for index, weight in enumerate(weights):
            if not isinstance(weight, int | np.integer) or weight <= 0:
                complaint = "must be a positive integer; scale shares by a common factor"
                raise DataError(f"weights[{index}] = {weight!r}: {complaint}")
        common = math.gcd(*map(int, weights)) or 1
        self.weights = [int(weight) // common for weight in weights]
        self.period = sum(self.weights)
        if not 0 < self.period <= MAX_PERIOD:
            raise DataError(
                f"weights = {len(weights)} numbers with sum {sum(weights)}: must be 1 to"
                f" {MAX_PERIOD:,}; name at least one source, or round the weights to fewer digits"
            )

        # turns[p]: how often the source at p has had its turn before, in this period
        self.sources = np.asarray(one_period(self.weights), dtype=np.int32)
        self.turns = np.empty(self.period, dtype=np.int64)
        for source, weight in enumerate(self.weights):
            self.turns[self.sources == source] = np.arange(weight)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(source, number of its sequences at earlier positions) at `position` >= 0."""
        if position < 0:
            raise IndexError(f"position = {position}: positions count from 0")
        periods, rest = divmod(position, self.period)
        source = int(self.sources[rest])
        return source, periods * self.weights[source] + int(self.turns[rest])

    def taken(self, position: int) -> Int[np.ndarray, " sources"]:
        """How many sequences of each source lie before `position`, int64."""
        periods, rest = divmod(position, self.period)
        in_this_period = np.bincount(self.sources[:rest], minlength=len(self.weights))
        return periods * np.asarray(self.weights) + in_this_period

    def position(self, source: int, turn: int) -> int:
        """Where `source` has its turn number `turn`: the inverse of indexing."""
        periods, rest = divmod(turn, self.weights[source])
        return periods * self.period + int(np.flatnonzero(self.sources == source)[rest])


def one_period(weights: list[int]) -> list[int]:
    """Earliest deadline first among the released sequences, over one period."""
    period = sum(weights)
    # the next sequence of every source, in one of the two
    waiting = [(0, source, 0) for source in range(len(weights))]  # (release, source, j)
    released: list[tuple[int, int, int]] = []  # (deadline, source, j)

    order = []
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            _, source, j = heapq.heappop(waiting)
            deadline = -(-(j + 1) * period // weights[source])
            heapq.heappush(released, (deadline, source, j))

        deadline, source, j = heapq.heappop(released)
        assert position < deadline, "the quota schedule always meets its deadlines"
        order.append(source)
        heapq.heappush(waiting, ((j + 1) * period // weights[source], source, j + 1))
    return order
