"""Bits per byte: what a text costs a model, whatever its tokenizer.

A loss per token depends on how long tokens are. The bytes of a text are the same for
every model, so bits per byte compare models with different tokenizers, and sums over
parallel texts compare languages.

Scored is what training scores: every token of a document but the first, which has
nothing before it, and the end of text. The bytes are those of the scored tokens.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from slm2_minimal.config import IGNORE, DataError
from slm2_minimal.model.loss import token_log_probs
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.documents import Document
from slm2_minimal.text.interface import Tokenizer

WINDOWS = 8  # in a batch


@dataclass(frozen=True)
class TextScore:
    """What one document costs: minus its log-probability, over `tokens` that stand for
    `bytes` of its text.
    """

    document: Document
    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """Documents taken together, each with the weight of its length; `low` and `high`
    are the ends of a 95% interval of `bits_per_byte`.
    """

    documents: int
    tokens: int
    bytes: int
    loss: float  # nats per token
    perplexity: float
    bits_per_byte: float
    low: float
    high: float


def bits_per_byte(nats: float, size: int) -> float:
    """Nats over `size` bytes, in bits per byte."""
    return nats / math.log(2) / size


def scored_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Bytes of a document's tokens without the first."""
    return sum(len(tokenizer.token_bytes(token)) for token in ids[1:])


def text_scores(
    model: StableLM2,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    stride: int | None = None,
    context: int | None = None,
) -> list[TextScore]:
    """Score each document on its own, in windows of `context` tokens (the model's).

    Windows begin every `stride` tokens, and a window scores only what no earlier one
    did. Left out, it is `context`: every token is read once, and the first of a window
    are scored with little before them. A smaller one gives every token but the first
    ones at least `context - stride` tokens before it, and takes `context / stride`
    times as long.

    Raises:
        DataError: `stride` or `context` is out of range.
    """
    longest = model.config.max_position_embeddings
    context = longest if context is None else context
    stride = context if stride is None else stride
    for name, value, most in (("context", context, longest), ("stride", stride, context)):
        if not 1 <= value <= most:
            raise DataError(f"{name} = {value}: must be from 1 to {most}")

    scores = []
    for document in documents:
        ids = [*tokenizer.encode(document.text), tokenizer.eos_token_id]
        nats = -_log_prob(model, ids, list(windows(len(ids), context, stride)))
        scores.append(TextScore(document, nats, len(ids) - 1, scored_bytes(tokenizer, ids)))
    return scores


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Of `length` tokens: (begin, first, end) of each window, which reads the tokens
    from `begin` to before `end` and scores those from `first` to `end`.
    """
    begin, first = 0, 1
    while first < length:
        end = min(begin + context, length - 1)
        yield begin, first, end
        begin, first = begin + stride, end + 1


def summarise(
    scores: Sequence[TextScore],
    by: Callable[[Document], str] = attrgetter("language"),
    seed: int = 0,
) -> dict[str, Summary]:
    """Scores by language, or by whatever `by` makes of a document: its domain, its
    source.

    Raises:
        DataError: no token is scored in a group.
    """
    groups: dict[str, list[TextScore]] = defaultdict(list)
    for score in scores:
        groups[by(score.document)].append(score)
    return {name: _summary(name, group, seed) for name, group in groups.items()}


def ratio_interval(
    parts: Sequence[float], sizes: Sequence[float], seed: int = 0, samples: int = 2000
) -> tuple[float, float]:
    """A 95% interval of sum(parts) / sum(sizes): documents are drawn with replacement.

    With a difference of two models' nats as `parts`, it is that of the difference. Of
    few documents, fewer than about twenty, it is somewhat too narrow.
    """
    pairs = np.array([parts, sizes], dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(parts), size=len(parts)) for _ in range(samples)]
    sums = np.array([pairs[:, chosen].sum(1) for chosen in drawn])
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _summary(name: str, scores: Sequence[TextScore], seed: int) -> Summary:
    nats = [score.nats for score in scores]
    sizes = [score.bytes for score in scores]
    if not sum(sizes):
        raise DataError(f"{name} = {len(scores)} documents: no text to score; give longer ones")

    total, tokens = sum(nats), sum(score.tokens for score in scores)
    loss = total / tokens
    low, high = (end / math.log(2) for end in ratio_interval(nats, sizes, seed))
    bits = bits_per_byte(total, sum(sizes))
    return Summary(len(scores), tokens, sum(sizes), loss, math.exp(loss), bits, low, high)


@torch.no_grad()
def _log_prob(model: StableLM2, ids: list[int], parts: list[tuple[int, int, int]]) -> float:
    """Of all that the windows score. Shorter windows are filled up at their ends, where
    causal attention does not look.
    """
    device = next(model.parameters()).device
    total = 0.0
    for start in range(0, len(parts), WINDOWS):
        batch = parts[start : start + WINDOWS]
        width = max(end - begin for begin, _, end in batch)
        inputs = torch.zeros(len(batch), width, dtype=torch.long)
        labels = torch.full_like(inputs, IGNORE)
        for row, (begin, first, end) in enumerate(batch):
            inputs[row, : end - begin] = torch.tensor(ids[begin:end])
            labels[row, first - 1 - begin : end - begin] = torch.tensor(ids[first : end + 1])
        head = partial(token_log_probs, labels=labels.to(device))
        log_probs: Float[Tensor, "B T"] = model(inputs.to(device), head=head)
        total += log_probs.sum(dtype=torch.float64).item()
    return total
