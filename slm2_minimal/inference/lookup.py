"""Prompt lookup: greedy text in fewer steps, where the text repeats what it has.

What followed the last few ids where they stood before is taken for a draft. The model
reads it in one step, which costs little more than one token where weights have to be
fetched from memory, and says up to where it would have written the same.
"""

from collections.abc import Collection, Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from slm2_minimal.inference.generate import check_room, new_cache, prefill
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.transformer import StableLM2

NGRAM = 3  # ids that must have stood before, one after the other
DRAFT = 8  # ids that are drafted at most
SURE = 8  # how many times the rounding that was measured an id must lead by


def find_draft(ids: list[int], ngram: int = NGRAM, length: int = DRAFT) -> list[int]:
    """Up to `length` ids that followed the last `ngram` where these stood last."""
    if len(ids) <= ngram:
        return []
    windows = sliding_window_view(np.asarray(ids[:-1]), ngram)
    places = np.flatnonzero((windows == ids[-ngram:]).all(axis=1))
    if len(places) == 0:
        return []
    start = int(places[-1]) + ngram
    return ids[start : start + length]


def stream_lookup(
    model: StableLM2,
    prompt: list[int],
    max_new_tokens: int,
    *,
    stop_ids: Collection[int] = (),
    cache: KeyValueCache | None = None,
) -> Iterator[int]:
    """The ids that `stream` draws greedily after one prompt.

    A step over several ids rounds otherwise than one over a single id. How much is
    measured on the prompt; where the two likeliest are closer than `SURE` times that,
    no draft decides, but a step over one id. So the ids are the same in any format of
    the weights, as long as no rounding is that much larger than the one measured.

    Raises:
        DataError: as `stream`.
    """
    room = model.config.max_position_embeddings if cache is None else cache.capacity
    check_room([prompt], max_new_tokens, room)
    if cache is None:
        cache = new_cache(model, 1, len(prompt) + max_new_tokens)
    return _steps(model, list(prompt), max_new_tokens, stop_ids, cache)


@torch.no_grad()
def _steps(
    model: StableLM2,
    ids: list[int],
    max_new_tokens: int,
    stop_ids: Collection[int],
    cache: KeyValueCache,
) -> Iterator[int]:
    """The loop of `stream_lookup`, everything checked."""
    end = len(ids) + max_new_tokens
    device = cache.layers[0].device
    logits = prefill(model, torch.tensor([ids], device=device), cache)
    margin = SURE * _rounding(model, ids, cache)
    draft: list[int] = []
    while len(ids) < end:
        agreed, follows = _verdict(logits, draft, margin)
        new = draft[:agreed] if follows is None else [*draft[:agreed], follows]
        for token in new:
            ids.append(token)
            yield token
            if token in stop_ids:
                return

        # the next step: the last id, which the model may have read already, and a draft
        draft = [] if follows is None else find_draft(ids)[: max(0, end - len(ids) - 1)]
        cache.truncate(len(ids) - 1)
        logits = _logits(model, [ids[-1], *draft], cache)


def _verdict(
    logits: Float[Tensor, "T V"], draft: list[int], margin: float
) -> tuple[int, int | None]:
    """How many ids of the draft are what greedy steps would have written, and which id
    follows those; None where a step over one id has to say.

    Without a draft it is such a step.
    """
    choice = logits.argmax(dim=-1).tolist()
    if not draft:
        return 0, choice[0]
    two = logits.float().topk(2).values
    sure = (two[:, 0] - two[:, 1] >= margin).tolist()
    agreed = 0
    while agreed < len(draft) and sure[agreed] and draft[agreed] == choice[agreed]:
        agreed += 1
    return agreed, choice[agreed] if sure[agreed] else None


def _logits(model: StableLM2, ids: list[int], cache: KeyValueCache) -> Float[Tensor, "T V"]:
    """The logits after each of `ids`, which the cache then holds."""
    return model(torch.tensor([ids], device=cache.layers[0].device), cache=cache)[0]


def _rounding(model: StableLM2, ids: list[int], cache: KeyValueCache) -> float:
    """The largest difference that a step over several ids makes to the logits after the
    prompt, which the cache holds. By chance it may be none there: it is taken to be one
    step of the logits' own format at least.
    """
    several = [ids[-1]] * min(1 + DRAFT, cache.capacity - len(ids) + 1)
    rows = []
    for step in (several[:1], several):
        cache.truncate(len(ids) - 1)
        rows.append(_logits(model, step, cache)[0])
    cache.truncate(len(ids))
    one, among_several = rows
    least = torch.finfo(one.dtype).eps * one.abs().max()
    return float(torch.maximum((one - among_several).abs().max(), least))
