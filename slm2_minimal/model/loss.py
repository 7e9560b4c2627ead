"""Cross-entropy summed over valid tokens, without holding the logits of the whole
batch.

For a vocabulary of 100,352 and 2 x 4096 tokens the fp32 logits alone are 3.3 GB, and
softmax, its gradient and their copies several times that. Here a chunk of tokens at a
time is projected, its loss added up, and its gradient taken at once, so that only one
chunk's logits ever live. The matrix products are the same three that any implementation
needs. The report computes this loss in fp32 (section 3.1).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm2_minimal.config import IGNORE

# Logits of one chunk in fp32. On a CPU what its caches like best, measured. On a GPU
# many rows, by arithmetic: every chunk reads the head twice and adds to its whole
# gradient, 16 V C bytes moved, which for the 1.6B and 41 rows at a time would take as
# long as the step.
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}


def summed_cross_entropy(
    hidden: Float[Tensor, "B T C"], weight: Float[Tensor, "V C"], labels: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """The sum over valid tokens of -log softmax(hidden weight')[label], in fp32.

    Divide by the *global* count of valid tokens, whatever the accumulation: means of
    micro-batch means weigh tokens unequally. An all-ignored batch gives 0 and zero
    gradients. Use as `model(ids, ..., head=partial(summed_cross_entropy,
    labels=labels))`.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _SummedCrossEntropy.apply(hidden.flatten(0, -2), weight, labels.flatten(), dtype)


class _SummedCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks; backward only scales them.
    Products run in `dtype`, sums in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        head = weight.to(dtype)
        valid = (labels != IGNORE).nonzero().squeeze(1)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for chosen in valid.split(max(1, CHUNK_BYTES[hidden.device.type] // (4 * len(weight)))):
            states, targets = hidden[chosen].to(dtype), labels[chosen, None]
            logits = (states @ head.T).float()
            target_logits, highest = logits.gather(1, targets), logits.amax(dim=-1, keepdim=True)
            # Everything by the vocabulary is made in place: exp(logits - highest), then
            # softmax, then softmax minus one-hot.
            grad_logits = logits.sub_(highest).exp_()
            normaliser = grad_logits.sum(dim=-1, keepdim=True)
            loss += (normaliser.log() + highest - target_logits).sum()
            grad_logits.div_(normaliser).scatter_add_(
                1, targets, grad_logits.new_full((len(targets), 1), -1.0)
            )
            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[chosen] = (grad_logits @ head).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_logits.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype),
            None,
            None,
        )
