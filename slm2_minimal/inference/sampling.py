"""How the next id is drawn: temperature, then top-k, then top-p."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
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
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature < float("inf"):
            raise DataError(
                f"temperature = {self.temperature}: must be a finite number from {COLDEST:g} on, or"
                " 0; 0 is greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise DataError(
                f"top_k = {self.top_k}: must be at least 1; leave it out to keep all ids"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise DataError(
                f"top_p = {self.top_p}: must lie above 0 and at most at 1; leave it out to keep all"
                " ids"
            )

        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise DataError(f"seed = {shown(self.seed)}: must fit 64 bits; give a smaller number")

    def generator(self, device: torch.device) -> torch.Generator:
        """Random numbers that begin at `seed`."""
        generator = torch.Generator(device=device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def draw(
        self, logits: Float[Tensor, "B V"], generator: torch.Generator | None = None
    ) -> Int[Tensor, " B"]:
        """One id per row. First the temperature, then the `top_k` likeliest, then the
        fewest that hold `top_p` of what is left.
        """
        if self.temperature == 0 or self.top_k == 1:
            return logits.argmax(dim=-1)
        probabilities = (logits.float() / self.temperature).softmax(dim=-1)
        ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered[:, min(self.top_k, ordered.shape[1]) :] = 0
            ordered /= ordered.sum(dim=-1, keepdim=True)
        if self.top_p is not None:
            likelier = ordered.cumsum(dim=-1) - ordered  # their mass; the first id always stays
            ordered[:, 1:][likelier[:, 1:] >= self.top_p] = 0
        return ids.gather(1, torch.multinomial(ordered, 1, generator=generator)).squeeze(1)
