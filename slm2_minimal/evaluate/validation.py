"""Validation loss per language, beside the best model that knows no context."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm2_minimal.config import IGNORE
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import Stream
from slm2_minimal.distributed.device import autocast
from slm2_minimal.distributed.world import World
from slm2_minimal.model.loss import token_log_probs
from slm2_minimal.model.transformer import StableLM2

# Read per language, 2M tokens at the report's 4096: a validation costs no more where
# more text is held out.
MAX_SEQUENCES = 512
SCORED_TOKENS = 4096  # in a batch, at least
SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationSet:
    """One language's held-out text, in batches of up to `batch_size` sequences.

    What is scored are up to MAX_SEQUENCES sequences of `seq_len` tokens, spread evenly
    over the text.
    """

    held_out: Stream  # not empty
    counts: Int[np.ndarray, " V"]  # of every id in the training text
    seq_len: int
    batch_size: int

    @cached_property
    def unigram_loss(self) -> float:
        """What a unigram model makes of the same targets, in nats per token."""
        labels = torch.cat([batch.labels.flatten() for batch in self.batches()])
        return -unigram(self.counts)[labels[labels != IGNORE]].mean().item()

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[Batch]:
        """The batches that one of `size` ranks scores: as many on each rank.

        A rank for which no sequence is left scores one without labels.
        """
        available = self.held_out.num_sequences(self.seq_len)
        count = min(available, MAX_SEQUENCES)
        chosen = [i * available // count for i in range(count)]

        for start in range(0, count, self.batch_size * size):
            begin = start + rank * self.batch_size
            own = chosen[begin : begin + self.batch_size]
            indices = own or chosen[:1]
            batch = Batch.stack([self.held_out.sequence(i, self.seq_len) for i in indices])
            if not own:
                batch = replace(batch, labels=torch.full_like(batch.labels, IGNORE))
            yield batch

    def num_batches(self, size: int = 1) -> int:
        """How many batches each of `size` ranks scores."""
        count = min(self.held_out.num_sequences(self.seq_len), MAX_SEQUENCES)
        return -(-count // (self.batch_size * size))


def validation_sets(
    held_out: Mapping[str, Stream],
    token_counts: Mapping[str, Int[np.ndarray, " V"]],
    seq_len: int,
    micro_batch_size: int,
) -> dict[str, ValidationSet]:
    """A set for every language that has both held-out and training text.

    Short sequences are scored faster in larger batches than those of training.
    """
    batch_size = max(micro_batch_size, SCORED_TOKENS // seq_len)
    return {
        language: ValidationSet(stream, token_counts[language], seq_len, batch_size)
        for language, stream in held_out.items()
        if language in token_counts
    }


def unigram(counts: Int[np.ndarray, " V"]) -> Float[Tensor, " V"]:
    """Log-probability of each id by its count in the training text, plus one."""
    smoothed = torch.from_numpy(counts).double() + 1
    return (smoothed / smoothed.sum()).log()


@torch.no_grad()
def validation_losses(
    model: StableLM2,
    sets: Mapping[str, ValidationSet],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    rank: int = 0,
    size: int = 1,
    world: World | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Nats per token of every set, or None where it was asked to stop.

    The processes of `world` share the work: this one takes the part `rank` of `size`,
    counted among those that read other data. `should_stop` is asked before every batch;
    its answer must be the same on all.
    """
    losses = {}
    done, batches = 0, sum(each.num_batches(size) for each in sets.values())
    shown = time.perf_counter()
    for name, validation_set in sets.items():
        total, count = 0.0, 0.0
        for batch in validation_set.batches(rank, size):
            if should_stop():
                return None
            count += batch.valid_tokens
            total -= _log_probs(model, batch.to(device), dtype).sum(dtype=torch.float64).item()

            # A line now and then, where it takes long
            done += 1
            if time.perf_counter() - shown > SECONDS_BETWEEN_LINES:
                logger.info("validation | %d of %d batches", done, batches)
                shown = time.perf_counter()
        if world is not None:
            total, count = world.sum(total, count)
        losses[name] = total / max(count, 1)
    return losses


def _log_probs(model: StableLM2, batch: Batch, dtype: torch.dtype) -> Float[Tensor, "B T"]:
    head = partial(token_log_probs, labels=batch.labels)
    with autocast(batch.labels.device, dtype):
        return model(batch.input_ids, batch.position_ids, batch.attention_ids, head=head)
