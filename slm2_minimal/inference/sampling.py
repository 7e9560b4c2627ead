"""How the next id is drawn: repetition penalty, temperature, top-k, top-p, min-p.

The order, and what each of them does, are those of transformers. Each row of a batch
has random numbers of its own, one for each step.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from slm2_minimal.config import DataError
from slm2_minimal.config.errors import shown

COLDEST = 1e-6  # what divides fp32 logits without making them infinite


@dataclass(frozen=True)
class Sampling:
    """Options of drawing, checked when made. Temperature 0 is greedy; the same seed
    gives the same ids on the same machine, and None a fresh one.

    Raises:
        DataError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None  # draw among so many of the likeliest
    top_p: float | None = None  # among the fewest that hold this share
    min_p: float | None = None  # among those with this share of the likeliest's probability
    repetition_penalty: float = 1.0  # of ids that the text has; above 1 they become less likely
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature < float("inf"):
            raise DataError(
                f"temperature = {self.temperature}: must be a finite number from {COLDEST:g} on, or"
                " 0; 0 is greedy"
            )

        # which ids stay
        if self.top_k is not None and self.top_k < 1:
            raise DataError(
                f"top_k = {self.top_k}: must be at least 1; leave it out to keep all ids"
            )
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise DataError(
                    f"{name} = {share}: must lie above 0 and at most at 1; leave it out to keep all"
                    " ids"
                )

        # how they are weighed and drawn
        if not 0 < self.repetition_penalty < float("inf"):
            raise DataError(
                f"repetition_penalty = {self.repetition_penalty}: must be a finite number above 0;"
                " 1 changes nothing"
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise DataError(f"seed = {shown(self.seed)}: must fit 64 bits; give a smaller number")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest id is always the one that is drawn."""
        return self.temperature == 0 or self.top_k == 1

    def uniform(self, rows: Sequence[int], steps: int) -> Float[Tensor, "B steps"]:
        """Random numbers below 1 for each row and step. Those of a row depend on the
        seed and on its number, and on nothing else.
        """
        seed = secrets.randbits(64) if self.seed is None else self.seed % 2**64
        draws = [np.random.default_rng([seed, row]).random(steps) for row in rows]
        return torch.from_numpy(np.stack(draws))

    def filter(
        self, logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B V"]:
        """What is drawn from, as fp32 logits: minus infinity for what is not. `seen`:
        which ids each row's text has. Not for temperature 0.

        Ids as likely as the last that stays, stay too: which of them came first in a
        sort must not decide.
        """
        logits = self._penalised(logits.float(), seen) / self.temperature
        nothing = float("-inf")
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            last = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < last, nothing)
        if self.top_p is not None and self.top_p < 1:
            probabilities = logits.softmax(dim=-1)
            last = self._last_of_top_p(probabilities)
            logits = logits.masked_fill(probabilities < last, nothing)
        if self.min_p is not None:
            last = logits.amax(dim=-1, keepdim=True) + math.log(self.min_p)
            logits = logits.masked_fill(logits < last, nothing)
        return logits

    def draw(
        self,
        logits: Float[Tensor, "B V"],
        uniform: Float[Tensor, " B"],
        seen: Bool[Tensor, "B V"] | None = None,
    ) -> Int[Tensor, " B"]:
        """One id per row: the one at which the probabilities, added up in the order of
        the ids, exceed the row's uniform number.
        """
        if self.greedy:
            return self._penalised(logits, seen).argmax(dim=-1)
        cumulative = self.filter(logits, seen).double().softmax(dim=-1).cumsum(dim=-1)
        cumulative /= cumulative[:, -1:].clone()  # the last is 1, above every number
        places = uniform[:, None].contiguous()
        return torch.searchsorted(cumulative, places, right=True).squeeze(1)

    def _penalised(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        """A positive logit of an id that was seen is divided, a negative multiplied."""
        if self.repetition_penalty == 1 or seen is None:
            return logits
        logits, penalty = logits.float(), self.repetition_penalty
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        return torch.where(seen, penalised, logits)

    def _last_of_top_p(self, probabilities: Float[Tensor, "B V"]) -> Float[Tensor, "B 1"]:
        """The smallest probability among the fewest ids that hold `top_p`.

        Ids below (1 - top_p) / V cannot be among them, for all of those hold less than
        1 - top_p together. So few need to be sorted.
        """
        assert self.top_p is not None
        candidates = probabilities >= (1 - self.top_p) / probabilities.shape[-1]
        most = max(1, int(candidates.sum(dim=-1).max()))
        ordered = probabilities.topk(most).values
        likelier = ordered.cumsum(dim=-1) - ordered  # their mass; the first id always stays
        count = (likelier < self.top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        return ordered.gather(1, count - 1)
