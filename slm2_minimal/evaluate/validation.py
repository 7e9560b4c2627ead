"""Validation loss per language, beside the loss of the best model that knows no
context.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm2_minimal.config import IGNORE
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import Stream
from slm2_minimal.distributed.device import autocast
from slm2_minimal.distributed.world import World
from slm2_minimal.model.loss import summed_cross_entropy
from slm2_minimal.model.transformer import StableLM2

# read per language, 2M tokens at the report's 4096: a validation costs no more where
# more text is held out
MAX_SEQUENCES = 512


@dataclass(frozen=True)
class ValidationSet:
    """One language's held-out text, and what a unigram model of its training text makes
    of it (nats per token).

    Both losses are of the same targets: those of up to MAX_SEQUENCES sequences of
    `seq_len` tokens, in batches of up to `rows` rows.
    """

    held_out: Stream
    seq_len: int
    rows: int
    unigram_loss: float

    @classmethod
    def build(
        cls, held_out: Stream, counts: Int[np.ndarray, " ids"], seq_len: int, rows: int
    ) -> "ValidationSet":
        """`held_out` must have tokens; `counts` are those of the ids in the training
        text.
        """
        log_p = unigram(counts)
        targets = torch.cat(
            [batch.labels[batch.labels != IGNORE] for batch in _batches(held_out, seq_len, rows)]
        )
        return cls(held_out, seq_len, rows, -float(log_p[targets].mean()))

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[Batch]:
        """The sequences that one of `size` ranks scores, cut from the text as they are
        asked for, in as many batches on each.
        """
        return _batches(self.held_out, self.seq_len, self.rows, rank, size)


def _batches(
    held_out: Stream, seq_len: int, rows: int, rank: int = 0, size: int = 1
) -> Iterator[Batch]:
    """Spread evenly over the text, in which one source follows the other. A rank for
    which none is left scores a row without labels.
    """
    there = held_out.num_sequences(seq_len)
    count = min(there, MAX_SEQUENCES)
    chosen = [i * there // count for i in range(count)]
    for start in range(0, count, rows * size):
        own = chosen[start + rank * rows : start + (rank + 1) * rows]
        batch = Batch.stack([held_out.sequence(i, seq_len) for i in own or chosen[:1]])
        yield batch if own else replace(batch, labels=torch.full_like(batch.labels, IGNORE))


def unigram(counts: Int[np.ndarray, " ids"]) -> Float[Tensor, " ids"]:
    """Log-probability of each of the tokenizer's ids by its count in the training text,
    one added to every count.
    """
    smoothed = torch.from_numpy(counts).double() + 1
    return (smoothed / smoothed.sum()).log()


@torch.no_grad()
def validation_losses(
    model: StableLM2,
    sets: Mapping[str, ValidationSet],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    share: tuple[int, int] = (0, 1),
    world: World | None = None,
) -> dict[str, float]:
    """Nats per token of every set. The ranks of `world` share the work: `share` is
    (rank, size) among those that read other data.
    """
    losses = {}
    for name, held_out in sets.items():
        total, count = 0.0, 0
        for batch in held_out.batches(*share):
            moved = batch.to(device)
            head = partial(summed_cross_entropy, labels=moved.labels)
            with autocast(device, dtype):
                total += float(
                    model(moved.input_ids, moved.position_ids, moved.document_ids, head=head)
                )
            count += batch.valid_tokens
        everywhere = (total, count) if world is None else world.sum(total, count)
        losses[name] = everywhere[0] / max(everywhere[1], 1)
    return losses
