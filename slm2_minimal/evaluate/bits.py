"""Bits per byte: what a text costs a model, whatever its tokenizer.

A loss per token depends on how long tokens are. The bytes of a text are the same for
every model, so bits per byte compare models with different tokenizers, and sums over
parallel texts compare languages.

Scored is what training scores: every token of a document but the first, which has
nothing before it, and the end of text. The bytes are those of the scored tokens.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from slm2_minimal.config import DataError
from slm2_minimal.evaluate.score import score, windows
from slm2_minimal.evaluate.statistics import bootstrap_interval
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.documents import Document
from slm2_minimal.text.interface import Tokenizer


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
    are the ends of the 95% interval of `bits_per_byte`, drawn over documents.
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

    A window begins `stride` tokens after the last, and scores only what no earlier one
    did. Left out, it is `context`: every token is read once, and those at the beginning
    of a window have little before them. With a smaller one all but the first have at
    least `context - stride` tokens before them, at `context / stride` times the work.

    Raises:
        DataError: `stride` or `context` is out of range.
    """
    longest = model.config.max_position_embeddings
    context = longest if context is None else context
    stride = context if stride is None else stride
    for name, value, most in (("context", context, longest), ("stride", stride, context)):
        if not 1 <= value <= most:
            raise DataError(f"{name} = {value}: must be from 1 to {most}")

    # the windows of all documents, which are scored together
    texts = [[*tokenizer.encode(each.text), tokenizer.eos_token_id] for each in documents]
    parts = [list(windows(ids[1:], ids[0], context, context - stride + 1)) for ids in texts]
    found = iter(score(model, [part for own in parts for part in own], max_length=context))

    scores = []
    for document, ids, own in zip(documents, texts, parts, strict=True):
        nats = -sum(next(found).log_prob for _ in own)
        scores.append(TextScore(document, nats, len(ids) - 1, scored_bytes(tokenizer, ids)))
    return scores


def summarise(
    scores: Sequence[TextScore],
    by: Callable[[Document], str] = attrgetter("language"),
    seed: int = 0,
) -> dict[str, Summary]:
    """Scores by language, or by whatever `by` makes of a document: its domain, its
    source. Documents without a scored byte are left out.

    Raises:
        DataError: a group has no other.
    """
    groups: dict[str, list[TextScore]] = defaultdict(list)
    for each in scores:
        groups[by(each.document)].append(each)
    return {name: _summary(name, group, seed) for name, group in groups.items()}


def _summary(name: str, scores: Sequence[TextScore], seed: int) -> Summary:
    scored = [each for each in scores if each.bytes]
    if not scored:
        raise DataError(f"{name} = {len(scores)} documents: no text to score; give longer ones")
    nats, sizes = [each.nats for each in scored], [each.bytes for each in scored]
    low, high = bootstrap_interval(nats, sizes, seed=seed)

    total, tokens, size = sum(nats), sum(each.tokens for each in scored), sum(sizes)
    loss = total / tokens
    return Summary(
        documents=len(scored),
        tokens=tokens,
        bytes=size,
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=bits_per_byte(total, size),
        low=bits_per_byte(low, 1),
        high=bits_per_byte(high, 1),
    )
