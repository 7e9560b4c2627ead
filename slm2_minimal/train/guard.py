"""When not to make an update: a loss or gradient norm that is not finite, or a loss far
above what it has just been.

The policy is skip and rewind: the batch of a bad step is passed over, so the data
position moves on and the step does not. After MAX_SKIPS bad batches in a row the
weights themselves are suspected: the run goes back to its newest checkpoint, and still
the data position moves on. After MAX_REWINDS of those without WINDOW good steps between
them, the run ends; a process that is started again counts anew.
"""

import math
from collections import deque
from collections.abc import Iterable

WINDOW, MIN_LOSSES = 128, 32  # losses that a new one is held against, and how many there must be
MAX_SKIPS, MAX_REWINDS = 3, 3


class Guard:
    """Judges steps by the losses of the last WINDOW good ones: all that a checkpoint
    must hold of it.
    """

    def __init__(self, sigmas: float) -> None:
        """A loss is too high `sigmas` standard deviations above the mean; with 0 only
        what is not finite is bad.
        """
        self.sigmas = sigmas
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.skips = self.rewinds = self.good = 0

    def objection(self, loss: float, norm: float) -> str | None:
        """Why the update of a step with this loss and gradient norm should not be made;
        None where it should.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "not finite"
        if self.sigmas and len(self.losses) >= MIN_LOSSES:
            mean = math.fsum(self.losses) / len(self.losses)
            deviation = math.sqrt(
                math.fsum((x - mean) ** 2 for x in self.losses) / len(self.losses)
            )
            if loss > mean + self.sigmas * deviation:
                return (
                    f"a loss {(loss - mean) / deviation if deviation else math.inf:.1f} standard"
                    f" deviations above {mean:.3f}"
                )
        return None

    def restore(self, losses: Iterable[float]) -> None:
        """The losses that a checkpoint holds."""
        self.losses = deque(losses, maxlen=WINDOW)
        self.skips = self.good = 0

    def accept(self, loss: float) -> None:
        """A step was made."""
        self.losses.append(loss)
        self.skips = 0
        self.good += 1
        if self.good >= WINDOW:
            self.rewinds = 0

    def skip(self) -> bool:
        """A batch was passed over; true where it is time to rewind."""
        self.skips += 1
        self.good = 0
        return self.skips >= MAX_SKIPS

    def rewind(self) -> bool:
        """The run goes back to a checkpoint; false where it has done so too often."""
        self.skips = 0
        self.rewinds += 1
        return self.rewinds <= MAX_REWINDS
