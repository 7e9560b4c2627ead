"""Ids from a model, one token at a time on a key-value cache.

`generate` takes prompts of one length and gives tensors; `stream` takes any prompts and
gives each step's ids as they are drawn.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from slm2_minimal.config import DataError
from slm2_minimal.config.errors import shown
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.transformer import StableLM2

CHUNK = 512  # tokens of a prompt that are read at once: this bounds the memory


def generate(
    model: StableLM2,
    input_ids: Int[Tensor, "B T"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop_ids: Collection[int] = (),
) -> Int[Tensor, "B T_new"]:
    """The prompts with up to `max_new_tokens` sampled ids behind them: (B, T) -> (B, T
    + new).

    It ends early once every row has drawn a stop id; a row that ended before the others
    repeats the stop id it drew. The options are those of `Sampling`.

    Raises:
        DataError: an empty prompt, more tokens than the context holds, or sampling
        options out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    steps = stream(model, input_ids, max_new_tokens, sampling, stop_ids=stop_ids)
    return torch.cat([input_ids, *(ids[:, None] for ids in steps)], dim=1)


def stream(
    model: StableLM2,
    prompts: Int[Tensor, "B T"] | Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    samples: int = 1,
    stop_ids: Collection[int] = (),
    cache: KeyValueCache | None = None,
) -> Iterator[Int[Tensor, " rows"]]:
    """Each step's new ids as soon as they are drawn, of B * `samples` rows: all samples
    of the first prompt, then those of the second. What cannot be is refused at once,
    before the first step.

    Prompts may differ in length. What a row draws does not depend on the others: the
    samples of a prompt, wherever in the batch they stand, count from 0, and each has
    random numbers of its own.

    `cache` is for prompts of one length. It may have read their first tokens, and will
    hold all and what is drawn but the last. Left out, it is one of these rows alone.

    Raises:
        DataError: an empty prompt, or more tokens than the context holds.
    """
    rows = prompts.tolist() if isinstance(prompts, Tensor) else [list(ids) for ids in prompts]
    context = model.config.max_position_embeddings
    room = context if cache is None else min(context, cache.capacity)
    check_room(rows, max_new_tokens, room)
    if cache is None:
        cache = new_cache(model, len(rows) * samples, max(map(len, rows)) + max_new_tokens)
    return _steps(model, rows, max_new_tokens, sampling, samples, stop_ids, cache)


def check_room(prompts: Sequence[Sequence[int]], max_new_tokens: int, room: int) -> None:
    """Raise DataError where a prompt is empty, or does not fit with what is asked."""
    if max_new_tokens < 0:
        raise DataError(f"max_new_tokens = {max_new_tokens}: must not be negative")
    if not prompts:
        raise DataError("prompts = []: none; give at least one")
    if not all(prompts):
        raise DataError(
            "input_ids = 0 tokens: give a prompt of at least one token, the end-of-text token for"
            " free text"
        )

    # the longest decides, for all are written together
    longest = max(map(len, prompts))
    if longest > room:
        which = f" {[len(ids) for ids in prompts].index(longest) + 1}" if len(prompts) > 1 else ""
        raise DataError(
            f"prompt{which} = {longest} tokens: more than the context of {room}; shorten it"
        )
    if longest + max_new_tokens > room:
        raise DataError(
            f"max_new_tokens = {shown(max_new_tokens)}: with a prompt of {longest} more than the"
            f" context of {room}; ask for at most {room - longest}"
        )


def new_cache(model: StableLM2, rows: int, length: int) -> KeyValueCache:
    """An empty cache in the model's format and place."""
    table = model.model.embed_tokens.weight
    return KeyValueCache.allocate(model.config, rows, length, table.device, table.dtype)


@torch.no_grad()
def prefill(
    model: StableLM2, input_ids: Int[Tensor, "B T"], cache: KeyValueCache
) -> Float[Tensor, "B V"]:
    """Read what the cache does not hold yet of the prompts, by chunks; the logits of
    the id after them.
    """
    for chunk in input_ids[:, cache.length :].split(CHUNK, dim=1):
        logits = model(chunk, cache=cache, head=last_logits)
    return logits


def last_logits(hidden: Float[Tensor, "B T C"], head: nn.Module) -> Float[Tensor, "B V"]:
    """A head for `StableLM2.forward`: of the last position alone."""
    return head(hidden[:, -1])


@torch.no_grad()
def _steps(
    model: StableLM2,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    samples: int,
    stop_ids: Collection[int],
    cache: KeyValueCache,
) -> Iterator[Int[Tensor, " rows"]]:
    """The loop of `stream`, everything checked."""
    device = cache.layers[0].device
    rows = [prompt for prompt in prompts for _ in range(samples)]
    logits = _read(model, prompts, samples, cache)
    uniform = sampling.uniform(_sample_numbers(rows), max_new_tokens).to(device)
    seen = _seen(rows, logits) if sampling.repetition_penalty != 1 else None
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    drawn = torch.zeros(len(rows), dtype=torch.int64, device=device)

    for step in range(max_new_tokens):
        if step > 0:
            logits = model(drawn[:, None], cache=cache, head=last_logits)
        drawn = torch.where(ended, drawn, sampling.draw(logits, uniform[:, step], seen))
        yield drawn
        if stop_ids:
            ended = ended | torch.isin(drawn, stops)
            if ended.all():
                return
        if seen is not None:
            seen.scatter_(1, drawn[:, None], True)


def _read(
    model: StableLM2, prompts: list[list[int]], samples: int, cache: KeyValueCache
) -> Float[Tensor, "rows V"]:
    """Fill the cache with the prompts; the logits of the id after each.

    Prompts of one length are read together. Others are read one by one, each into a row
    that ends where the longest does, so that nothing is computed on padding; the other
    samples of a prompt get a copy of what was read.
    """
    device = cache.layers[0].device
    longest = max(map(len, prompts))
    starts = [longest - len(prompt) for prompt in prompts]
    if samples == 1 and not any(starts):
        return prefill(model, torch.tensor(prompts, device=device), cache)

    logits = []
    for number, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        row = cache.row(number * samples, start)
        logits += [prefill(model, torch.tensor([prompt], device=device), row)] * samples
        cache.repeat_row(number * samples, samples)
    cache.align([start for start in starts for _ in range(samples)], longest)
    return torch.cat(logits)


def _sample_numbers(rows: Sequence[Sequence[int]]) -> list[int]:
    """For each row, how many before it have the same prompt."""
    count: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for ids in map(tuple, rows):
        numbers.append(count[ids])
        count[ids] += 1
    return numbers


def _seen(rows: Sequence[Sequence[int]], logits: Float[Tensor, "B V"]) -> Bool[Tensor, "B V"]:
    """Which ids each row has."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, ids in zip(seen, rows, strict=True):
        row[ids] = True
    return seen
