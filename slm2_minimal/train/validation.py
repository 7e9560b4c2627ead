"""Validation loss per language, beside the loss of the best model that knows no context."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import IGNORE, TokenStream
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.device import autocast
from slm2_minimal.train.loss import summed_cross_entropy


@dataclass(frozen=True)
class ValidationSet:
    """One language's held-out text in batches, and what a unigram model of its training text makes of it (nats per token)."""

    batches: list[Batch]
    unigram_loss: float

    @classmethod
    def build(cls, held_out: TokenStream, counts: Int[np.ndarray, " ids"], seq_len: int, rows: int) -> "ValidationSet":
        """Cut `held_out` into batches of up to `rows` rows and score the unigram of the training text's `counts` on the same targets."""
        sequences = [held_out.sequence(i, seq_len) for i in range(held_out.num_sequences(seq_len))]
        batches = [Batch.stack(sequences[i : i + rows]) for i in range(0, len(sequences), rows)]
        log_p = unigram(counts)
        targets = torch.cat([batch.labels[batch.labels != IGNORE] for batch in batches])
        return cls(batches, -float(log_p[targets].mean()))


def unigram(counts: Int[np.ndarray, " ids"]) -> Float[Tensor, " ids"]:
    """Log-probability of each of the tokenizer's ids by its count in the training text, one added to every count."""
    smoothed = torch.from_numpy(counts).double() + 1
    return (smoothed / smoothed.sum()).log()


@torch.no_grad()
def validation_losses(
    model: StableLM2, sets: Mapping[str, ValidationSet], device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Nats per token of every set."""
    losses = {}
    for name, held_out in sets.items():
        total, count = 0.0, 0
        for batch in held_out.batches:
            moved = batch.to(device)
            head = partial(summed_cross_entropy, labels=moved.labels)
            with autocast(device, dtype):
                total += float(model(moved.input_ids, moved.position_ids, moved.document_ids, head=head))
            count += batch.valid_tokens
        losses[name] = total / max(count, 1)
    return losses
