"""Cross-entropy for training and log-probabilities for scoring, without holding the
logits of the whole batch.

For a vocabulary of 100,352 and 2 x 4096 tokens the fp32 logits alone are 3.3 GB, and
softmax, its gradient and their copies several times that. Here only one chunk's logits
ever live. Training takes a chunk's gradient at once, and needs the same three matrix
products as any implementation. The report computes this loss in fp32.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slm2_minimal.config import IGNORE

# Bytes of one chunk's logits in fp32. On a CPU, what its caches like best, measured. On
# a GPU more, by arithmetic: every chunk moves 16 V C bytes (it reads the head twice and
# adds to its whole gradient), and in the CPU's chunks, 41 tokens of the 1.6B, that
# would take as long as the step.
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}


def summed_cross_entropy(
    hidden: Float[Tensor, "B T C"], head: nn.Module, labels: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """The sum over valid tokens of -log softmax(head(hidden))[label], in fp32: minus
    the sum of `token_log_probs`, for training.

    Divide by the *global* count of valid tokens, whatever the accumulation: means of
    micro-batch means weigh tokens unequally. An all-ignored batch gives 0 and zero
    gradients. `head` is an nn.Linear without bias. Use as `model(ids, ...,
    head=partial(summed_cross_entropy, labels=labels))`.
    """
    assert isinstance(head, nn.Linear), f"use token_log_probs with a {type(head).__name__}"
    assert head.bias is None, "use token_log_probs where the head has a bias"
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    return SummedCrossEntropy.apply(hidden.flatten(0, -2), head.weight, labels.flatten(), dtype)


def token_log_probs(
    hidden: Float[Tensor, "B T C"], head: nn.Module, labels: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """log softmax(head(hidden))[label] of every token in fp32, and 0 where the label is
    IGNORE. Use as `head=partial(token_log_probs, labels=labels)`.

    `head` is any module that makes logits of hidden states. Gradients go to both: the
    backward pass makes each chunk's logits again.
    """
    states, targets = hidden.flatten(0, -2), labels.flatten()
    vocabulary = getattr(head, "out_features", None) or head(states[:1]).shape[-1]
    chunks = token_chunks(targets, vocabulary)

    scores = [
        checkpoint(_log_probs, head, states[chunk], targets[chunk], use_reentrant=False)
        for chunk in chunks
    ]
    every_token = torch.zeros(targets.shape, dtype=torch.float32, device=hidden.device)
    return every_token.index_copy(0, torch.cat(chunks), torch.cat(scores)).view_as(labels)


def _log_probs(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    """Of one chunk."""
    logits = head(states).float()
    valid = targets != IGNORE
    chosen = logits.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return (chosen - logits.logsumexp(dim=-1)).where(valid, 0.0)


def token_chunks(targets: Int[Tensor, " tokens"], vocabulary: int) -> tuple[Tensor, ...]:
    """Indices of the tokens to project, as many at a time as CHUNK_BYTES allows; at
    least one chunk, which may be empty.

    A CPU leaves out ignored tokens. A GPU projects them, and they are masked: the host
    would have to wait for their number. Packed pre-training ignores next to nothing;
    where fine-tuning ignores much, the head costs as if nothing were ignored.
    """
    if targets.device.type == "cpu":
        tokens = (targets != IGNORE).nonzero().squeeze(1)
    else:
        tokens = torch.arange(len(targets), device=targets.device)
    return tokens.split(max(1, CHUNK_BYTES[targets.device.type] // (4 * vocabulary)))


class SummedCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks; backward only scales them.
    Products run in `dtype`, sums in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        head = weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None

        for chunk in token_chunks(labels, len(weight)):
            states, targets = hidden[chunk].to(dtype), labels[chunk, None]
            ignored = targets == IGNORE
            targets = targets.clamp(min=0)
            logits = (states @ head.T).float()
            target_logits, highest = logits.gather(1, targets), logits.amax(dim=-1, keepdim=True)

            # Everything by the vocabulary is made in place: exp(logits - highest), then
            # softmax, then softmax minus one-hot; nothing where ignored.
            grad_logits = logits.sub_(highest).exp_()
            normaliser = grad_logits.sum(dim=-1, keepdim=True)
            losses = normaliser.log() + highest - target_logits
            loss += losses.masked_fill(ignored, 0.0).sum()
            grad_logits.div_(normaliser.masked_fill(ignored, float("inf")))
            grad_logits.scatter_add_(1, targets, ignored.to(grad_logits.dtype) - 1)

            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = (grad_logits @ head).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_logits.T @ states

        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None
