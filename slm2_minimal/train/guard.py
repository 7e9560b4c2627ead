"""When not to make an update: a loss or gradient norm that is not finite, or a spike.

The policy is skip and rewind. The batch of a bad step is passed over: the data position
moves on and the step does not. After MAX_SKIPS bad batches in a row the weights
themselves are suspected, and the run goes back to its newest checkpoint while the data
position still moves on. After MAX_REWINDS of those without WINDOW good steps between
them the run ends. A process that is started again counts anew.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

WINDOW = 128  # losses that a new one is held against
MIN_LOSSES = 32  # fewer say too little
MAX_SKIPS = 3
MAX_REWINDS = 3


class TrainingError(RuntimeError):
    """A run that cannot go on: steps are bad again and again."""


class Action(StrEnum):
    """What becomes of a step."""

    ACCEPT = "accept"
    SKIP = "skip"
    REWIND = "rewind"
    GIVE_UP = "give up"


class Verdict(NamedTuple):
    """What to do, and the objection to the step that leads to it."""

    action: Action
    reason: str = ""


class Guard:
    """Judges every step before its update, and counts what it refuses."""

    def __init__(self, sigmas: float) -> None:
        """A loss spikes `sigmas` standard deviations above the mean; with 0, never."""
        self.sigmas = sigmas
        self.skips = 0  # bad batches in a row
        self.rewinds = 0
        self.good_steps = 0  # in a row

    def judge(self, loss: float, grad_norm: float, recent_losses: Sequence[float]) -> Verdict:
        """The verdict on a step, given the losses of the good ones before it."""
        reason = self.objection(loss, grad_norm, recent_losses)
        if not reason:
            self.skips = 0
            self.good_steps += 1
            if self.good_steps >= WINDOW:
                self.rewinds = 0
            return Verdict(Action.ACCEPT)

        self.good_steps = 0
        self.skips += 1
        if self.skips < MAX_SKIPS:
            return Verdict(Action.SKIP, reason)

        self.skips = 0
        self.rewinds += 1
        if self.rewinds <= MAX_REWINDS:
            return Verdict(Action.REWIND, reason)
        return Verdict(Action.GIVE_UP, reason)

    def objection(self, loss: float, grad_norm: float, recent_losses: Sequence[float]) -> str:
        """Why the update should not be made; empty where it should."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "not finite"
        if self.sigmas == 0 or len(recent_losses) < MIN_LOSSES:
            return ""

        mean = math.fsum(recent_losses) / len(recent_losses)
        squares = math.fsum((x - mean) ** 2 for x in recent_losses)
        deviation = math.sqrt(squares / len(recent_losses))
        if loss <= mean + self.sigmas * deviation:
            return ""
        sigmas = (loss - mean) / deviation if deviation else math.inf
        return f"a loss {sigmas:.1f} standard deviations above {mean:.3f}"

    def forget(self) -> None:
        """Count from 0 again: the weights are a checkpoint's, or the data is other."""
        self.skips = 0
        self.good_steps = 0
