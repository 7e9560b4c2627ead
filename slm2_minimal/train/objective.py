"""What a step minimises.

The loss of a global batch is a sum over all of its micro-batches and ranks, divided by
a count over the same. The trainer asks an objective for both and knows nothing else of
it, so that another kind of training is another class here and not another loop.
"""

from functools import partial
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from slm2_minimal.data.loader import Batch
from slm2_minimal.model.loss import summed_cross_entropy


class Objective(Protocol):
    """A loss as a sum, and what that sum is divided by."""

    def weight(self, batch: Batch) -> int:
        """This batch's part of the divisor, counted before anything is computed."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sum over this batch, in fp32 and with gradients."""


class NextToken:
    """Pre-training: the cross-entropy of every next token, per valid token."""

    def weight(self, batch: Batch) -> int:
        return batch.valid_tokens

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        head = partial(summed_cross_entropy, labels=batch.labels)
        return model(batch.input_ids, batch.position_ids, batch.attention_ids, head=head)
