"""How likely a model finds given continuations of given contexts.

Every task of `harness.py` becomes such requests. They are packed into rows like
documents in training: each sees only itself, and next to nothing is padding. What does
not fit the context is cut as lm-evaluation-harness cuts it, on the left.
"""

import bisect
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from slm2_minimal.config import IGNORE, DataError
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import PackedSequence, restarting_positions
from slm2_minimal.model.loss import token_chunks, token_log_probs
from slm2_minimal.model.transformer import StableLM2

# A row has room for so many tokens, or for the longest request that is left: in longer
# rows a CPU, whose masks are dense, would spend its time on pairs that never meet.
ROW_TOKENS = 512
TOKENS_PER_BATCH = 4096
SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


class Request(NamedTuple):
    """Token ids: what is read, and what is scored behind it."""

    context: list[int]
    continuation: list[int]


class Score(NamedTuple):
    """Of a whole continuation."""

    log_prob: float  # the sum over its tokens, in nats
    greedy: bool  # whether each of its tokens is the likeliest


def score(
    model: StableLM2,
    requests: Sequence[Request],
    *,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[Score]:
    """The score of every request, in their order.

    The model reads at most `max_length` tokens of a request (default: its context), the
    last ones, and none behind the last that it predicts. Where there is no context, the
    end of text stands before the continuation.

    Raises:
        DataError: a continuation without tokens or longer than the window, or a window
        longer than the context; before anything is computed.
    """
    context = model.config.max_position_embeddings
    window = context if max_length is None else max_length
    if not 0 < window <= context:
        raise DataError(
            f"max_length = {window}: must lie between 1 and the model's context, {context}"
        )
    documents = [_document(model, number, each, window) for number, each in enumerate(requests)]
    cut = sum(len(each.context) + len(each.continuation) > window + 1 for each in requests)
    if cut:
        logger.info(
            "scoring | %d of %d contexts are cut to fit %d tokens", cut, len(requests), window
        )

    scores: dict[int, Score] = {}
    shown = time.perf_counter()
    for rows in _batches(pack([len(each.ids) - 1 for each in documents], window), tokens_per_batch):
        packed = [[documents[number] for number in row.members] for row in rows]
        for row, found in zip(rows, _score_rows(model, packed, rows[0].tokens), strict=True):
            scores.update(zip(row.members, found, strict=True))

        # A line now and then, where it takes long
        if time.perf_counter() - shown > SECONDS_BETWEEN_LINES:
            logger.info("scoring | %d of %d requests", len(scores), len(documents))
            shown = time.perf_counter()
    return [scores[number] for number in range(len(documents))]


def windows(ids: Sequence[int], prefix: int, length: int, overlap: int = 1) -> Iterator[Request]:
    """Requests that score every token of a text once, `length` tokens being read at a
    time. The first token follows `prefix`; each later window begins with at least
    `overlap` tokens that were scored before, and the last one is as long as the others.

    The windows are those of lm-evaluation-harness.
    """
    ids = list(ids)
    if ids:
        yield Request([prefix], ids[:length])
    step = length - overlap + 1
    for begin in range(length, len(ids), step):
        end = min(begin + step, len(ids))
        yield Request(ids[end - length - 1 : begin], ids[begin:end])


def rolling(
    model: StableLM2,
    ids: Sequence[int],
    *,
    max_length: int | None = None,
    overlap: int = 1,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> float:
    """The log-probability of a whole text in nats, however long, by `windows`. An end
    of text stands before it.
    """
    length = max_length or model.config.max_position_embeddings
    requests = list(windows(ids, _end_of_text(model), length, overlap))
    found = score(model, requests, max_length=length, tokens_per_batch=tokens_per_batch)
    return sum(each.log_prob for each in found)


# Rows


class Row(NamedTuple):
    """Which requests share a row, and how many tokens they are."""

    members: list[int]
    tokens: int


def pack(lengths: Sequence[int], window: int) -> list[Row]:
    """Put requests into rows, the longest first, and beside them the longest that still
    fit: first-fit decreasing, one row after the other.
    """
    waiting = sorted((length, number) for number, length in enumerate(lengths))
    rows = []
    while waiting:
        room = max(waiting[-1][0], min(ROW_TOKENS, window))
        members, tokens = [], 0
        while place := bisect.bisect_left(waiting, (room - tokens + 1,)):
            length, number = waiting.pop(place - 1)
            members.append(number)
            tokens += length
        rows.append(Row(members, tokens))
    return rows


def _batches(rows: Sequence[Row], tokens_per_batch: int) -> Iterator[list[Row]]:
    """Rows that are computed together: as good as equal in length, the longest first,
    so that an error of memory comes at once.
    """
    waiting = sorted(rows, key=lambda row: -row.tokens)
    while waiting:
        count = max(1, tokens_per_batch // waiting[0].tokens)
        yield waiting[:count]
        waiting = waiting[count:]


class _Document(NamedTuple):
    """A request as it is read."""

    ids: list[int]  # one more than the model sees: the last is only predicted
    scored: int  # how many of the last are


def _document(model: StableLM2, number: int, request: Request, window: int) -> _Document:
    context, continuation = request
    if not 0 < len(continuation) <= window:
        raise DataError(
            f"requests[{number}].continuation = {len(continuation)} tokens: must have from 1 to"
            f" {window}, the window; give another continuation, or a model of a longer context"
        )
    ids = [*(context or [_end_of_text(model)]), *continuation]
    return _Document(ids[-(window + 1) :], len(continuation))


def _end_of_text(model: StableLM2) -> int:
    end = model.config.eos_token_id
    if end is None:
        raise DataError("model.eos_token_id = None: stands before a text; give the model's one")
    return end


# What is computed


@torch.no_grad()
def _score_rows(
    model: StableLM2, rows: Sequence[Sequence[_Document]], length: int
) -> list[list[Score]]:
    """Of every request of rows of `length` tokens."""
    device = model.model.embed_tokens.weight.device
    batch = Batch.stack([_packed(documents, length) for documents in rows]).to(device)
    head = partial(_log_probs_and_greedy, labels=batch.labels, vocabulary=model.config.vocab_size)
    found = model(batch.input_ids, batch.position_ids, batch.attention_ids, head=head)
    log_probs, greedy = (each.cpu().numpy() for each in found)

    scores: list[list[Score]] = []
    for row, documents in enumerate(rows):
        scores.append([])
        end = 0
        for document in documents:
            end += len(document.ids) - 1
            scored = slice(end - document.scored, end)
            total = log_probs[row, scored].sum(dtype=np.float64)
            scores[-1].append(Score(float(total), bool(greedy[row, scored].all())))
    return scores


def _packed(documents: Sequence[_Document], length: int) -> PackedSequence:
    """A row of training: labels are there where something is scored. What is left at
    its end is a document of its own.
    """
    input_ids = np.zeros(length, dtype=np.int64)
    labels = np.full(length, IGNORE, dtype=np.int64)
    document_ids = np.full(length, len(documents), dtype=np.int64)
    begin = 0
    for number, (ids, scored) in enumerate(documents):
        end = begin + len(ids) - 1
        input_ids[begin:end] = ids[:-1]
        labels[end - scored : end] = ids[-scored:]
        document_ids[begin:end] = number
        begin = end
    return PackedSequence(input_ids, labels, restarting_positions(document_ids), document_ids)


def _log_probs_and_greedy(
    hidden: Float[Tensor, "B T C"], head: nn.Module, labels: Int[Tensor, "B T"], vocabulary: int
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """`token_log_probs`, and where the label is the likeliest id."""
    noting = _NotingHead(head, vocabulary)
    log_probs = token_log_probs(hidden, noting, labels)
    chunks = token_chunks(labels.flatten(), vocabulary)
    likeliest = torch.full_like(labels.flatten(), IGNORE)
    likeliest[torch.cat(chunks)] = torch.cat(noting.likeliest)
    return log_probs, likeliest.view_as(labels) == labels


class _NotingHead(nn.Module):
    """A head that notes the likeliest id wherever it is asked for logits."""

    def __init__(self, head: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.head = head
        self.out_features = vocabulary  # asked for before any logits
        self.likeliest: list[Tensor] = []

    def forward(self, states: Float[Tensor, "T C"]) -> Float[Tensor, "T V"]:
        logits = self.head(states)
        self.likeliest.append(logits.argmax(-1))
        return logits
