"""One step of training, from a global batch to an update.

`take_step` is the whole of it. The trainer calls its two halves, since between them it
asks the guard whether the update should be made.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from slm2_minimal.data.loader import Batch
from slm2_minimal.distributed.device import autocast
from slm2_minimal.train.objective import NextToken, Objective
from slm2_minimal.train.optimizer import clip_gradients, set_lr


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    *,
    lr: float,
    clip_norm: float,
    dtype: torch.dtype = torch.float32,
    objective: Objective | None = None,
) -> tuple[float, float]:
    """Make one update in one process. Returns the loss and the norm before clipping."""
    loss = accumulate_gradients(model, micro_batches, objective, dtype=dtype)
    grad_norm = clip_gradients(model.parameters(), clip_norm)
    update(optimizer, lr)
    return loss.item(), grad_norm.item()


def accumulate_gradients(
    model: nn.Module,
    micro_batches: list[Batch],
    objective: Objective | None = None,
    *,
    divisor: int | None = None,
    dtype: torch.dtype = torch.float32,
    context: Callable[[bool], AbstractContextManager[None]] = lambda last: nullcontext(),
) -> Float[Tensor, ""]:
    """Add the gradients of all micro-batches to the parameters', and return the loss.

    Args:
        objective: left out, next-token prediction.
        divisor: the objective's weight of the whole global batch, all ranks included.
            It is known before the first micro-batch, so neither loss nor gradient
            depends on how the batch is cut. Left out, it is that of `micro_batches`.
        dtype: of matrix products, under autocast.
        context: entered around each micro-batch, and told which one is the last.

    Returns:
        The mean loss; of several ranks, this one's part of the sum over all of them.
    """
    objective = objective or NextToken()
    device = next(model.parameters()).device
    if divisor is None:
        divisor = sum(objective.weight(batch) for batch in micro_batches)
    divisor = max(1, divisor)  # a batch without a single label has the loss 0

    total = torch.zeros((), device=device)
    for number, batch in enumerate(micro_batches, start=1):
        with context(number == len(micro_batches)):
            with autocast(device, dtype):
                loss = objective.loss(model, batch.to(device)) / divisor
            loss.backward()
        total += loss.detach()
    return total


def update(
    optimizer: torch.optim.Optimizer, lr: float, *, keep_gradient_memory: bool = False
) -> None:
    """Update the weights with the learning rate `lr`, and clear the gradients.

    With `keep_gradient_memory` they become zeros. DDP's lie in its buckets for good:
    new ones would be added up beside them, 4 more bytes per parameter.
    """
    set_lr(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad(set_to_none=not keep_gradient_memory)
