"""PLACE: say what this is."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from slm2_minimal.data.loader import Batch
from slm2_minimal.distributed.device import autocast
from slm2_minimal.model.loss import summed_cross_entropy


def accumulate_gradients(
    model: nn.Module,
    batches: list[Batch],
    device: torch.device,
    dtype: torch.dtype,
    valid: int | None = None,
    around: Callable[[bool], AbstractContextManager[None]] = lambda last: nullcontext(),
) -> Tensor:
    """Backpropagate the mean loss over all valid tokens of all micro-batches, and
    return it; with several ranks, this one's part of it.

    The divisor `valid` is the count over all micro-batches of all ranks, known before
    the first, so loss and gradient do not depend on how the batch is cut. Left out, it
    is the count of `batches`. `around` is entered for each; it is told which is the
    last.
    """
    valid = max(1, sum(batch.valid_tokens for batch in batches) if valid is None else valid)
    total = torch.zeros((), device=device)
    for number, batch in enumerate(batches, start=1):
        document_ids = batch.attention_ids  # asked before the move: the answer lies on the host
        batch, document_ids = (
            batch.to(device),
            (None if document_ids is None else document_ids.to(device)),
        )
        with around(number == len(batches)):
            with autocast(device, dtype):
                head = partial(summed_cross_entropy, labels=batch.labels)
                loss = model(batch.input_ids, batch.position_ids, document_ids, head=head) / valid
            loss.backward()
        total += loss.detach()
    return total
