"""PLACE: say what this is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slm2_minimal.config import ModelConfig

if (
    TYPE_CHECKING
):  # imported where it is used: FlexAttention brings torch's compiler along, which takes seconds
    pass


@dataclass
class KeyValueCache:
    """The keys and values of the tokens already read, one pair of (B, H, length, D) per
    layer.

    Memory: 2 * layers * hidden_size * bytes per token with as many key as query heads;
    196,608 bytes for the 1.6B in 16 bits.
    """

    layers: list[tuple[Tensor, Tensor] | None]

    @classmethod
    def empty(cls, config: ModelConfig) -> "KeyValueCache":
        """A cache that has read nothing."""
        return cls([None] * config.num_hidden_layers)

    @property
    def length(self) -> int:
        """How many tokens have been read."""
        return 0 if self.layers[0] is None else self.layers[0][0].shape[2]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values and return all of them."""
        old = self.layers[layer]
        if old is not None:
            k, v = torch.cat([old[0], k], dim=2), torch.cat([old[1], v], dim=2)
        self.layers[layer] = (k, v)
        return k, v
