"""The key-value cache: what need not be computed again for tokens already read."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from slm2_minimal.config import DataError, ModelConfig


class KeyValueCache:
    """Memory for the keys and values of some number of tokens, filled in place. The
    caller owns it, and runs the model under `torch.no_grad()`.

    It takes 2 * layers * K * D * bytes per token and row of the batch: 196,608 bytes
    for the 1.6B in 16 bits.

    Rows of different lengths are aligned at their ends: each is read alone into its
    `row`, then `align` says where they begin, and from then on each step writes one
    column. What lies before a row's start is never seen, and nothing is computed on it.
    """

    def __init__(self, layers: list[Float[Tensor, "2 B K capacity D"]]) -> None:
        self.layers = layers
        self.filled = [0] * len(layers)  # tokens of each layer
        self.starts: Tensor | None = None  # (B,): the first column of each row; None: all 0

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        batch_size: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KeyValueCache":
        """An empty cache for up to `length` tokens in each of `batch_size` rows."""
        shape = (2, batch_size, config.num_key_value_heads, length, config.head_dim)
        layers = range(config.num_hidden_layers)
        # zeros: what a mask hides is still multiplied by 0, and must be a number
        return cls([torch.zeros(shape, device=device, dtype=dtype) for _ in layers])

    @property
    def length(self) -> int:
        """How many tokens have been read, of the longest row."""
        return self.filled[0]

    @property
    def capacity(self) -> int:
        """How many tokens there is room for."""
        return self.layers[0].shape[3]

    def append(
        self, layer: int, keys: Float[Tensor, "B K T D"], values: Float[Tensor, "B K T D"]
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S D"]]:
        """Write the new tokens' keys and values; return views of all S so far.

        A rank of tensor parallelism uses the first of the K heads. Another dtype than
        the cache's, as under autocast, is converted, and comes back as a copy.
        """
        batch_size, heads, new, _ = keys.shape
        start, end = self.filled[layer], self.filled[layer] + new
        assert batch_size == self.layers[layer].shape[1], "another batch size than the cache's"
        if end > self.capacity:
            raise DataError(
                f"cache = {self.capacity} tokens: full, {end} are needed; allocate a longer one"
            )

        both = self.layers[layer][:, :, :heads]
        both[0, :, :, start:end] = keys
        both[1, :, :, start:end] = values
        self.filled[layer] = end
        all_keys, all_values = both[:, :, :, :end].to(keys.dtype)
        return all_keys, all_values

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        assert 0 <= length <= self.length, f"cannot keep {length} of {self.length} tokens"
        self.filled = [length] * len(self.filled)

    def row(self, number: int, start: int) -> "KeyValueCache":
        """The memory of one row from column `start` on, as an empty cache by itself."""
        return KeyValueCache([layer[:, number : number + 1, :, start:] for layer in self.layers])

    def repeat_row(self, number: int, times: int) -> None:
        """Copy a row into the `times` - 1 rows behind it."""
        for layer in self.layers:
            layer[:, number + 1 : number + times] = layer[:, number : number + 1]

    def align(self, starts: Sequence[int], length: int) -> None:
        """Every row has been filled from its start to column `length`."""
        self.filled = [length] * len(self.filled)
        if any(starts):
            self.starts = torch.tensor(starts, device=self.layers[0].device)
