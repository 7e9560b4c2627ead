"""Text from a model, one token at a time on a key-value cache."""

from collections.abc import Collection, Iterator
from itertools import takewhile

import torch
from jaxtyping import Int
from torch import Tensor, nn

from slm2_minimal.config import DataError
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import Tokenizer


def generate(
    model: StableLM2,
    input_ids: Int[Tensor, "B T"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
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
    sampling = Sampling(temperature, top_k, top_p, seed)
    steps = stream(model, input_ids, max_new_tokens, sampling, stop_ids=stop_ids)
    return torch.cat([input_ids, *(ids[:, None] for ids in steps)], dim=1)


def stream(
    model: StableLM2,
    input_ids: Int[Tensor, "B T"],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stop_ids: Collection[int] = (),
    cache: KeyValueCache | None = None,
) -> Iterator[Int[Tensor, " B"]]:
    """`generate`, but yielding each step's B new ids as soon as they are drawn. What
    `generate` refuses is refused here at once, before the first step.

    `cache` holds tokens that come before `input_ids`, and will hold those, too, and all
    that are drawn but the last. Left out, it is one of this text alone.
    """
    batch_size, prompt = input_ids.shape
    past = 0 if cache is None else cache.length
    room = model.config.max_position_embeddings - past
    if cache is not None:
        room = min(room, cache.capacity - past)
    if prompt == 0:
        raise DataError(
            "input_ids = 0 tokens: give a prompt of at least one token, the end-of-text token for"
            " free text"
        )
    if max_new_tokens < 0:
        raise DataError(f"max_new_tokens = {max_new_tokens}: must not be negative")
    if prompt + max_new_tokens > room:
        raise DataError(
            f"max_new_tokens = {max_new_tokens}: with a prompt of {prompt} more than the context of"
            f" {room}; ask for at most {max(0, room - prompt)}"
        )

    if cache is None:
        length, dtype = prompt + max_new_tokens, model.lm_head.weight.dtype
        cache = KeyValueCache.allocate(model.config, batch_size, length, input_ids.device, dtype)
    return _steps(model, input_ids, max_new_tokens, sampling, stop_ids, cache)


@torch.no_grad()
def _steps(
    model: StableLM2,
    fresh: Int[Tensor, "B T"],
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: Collection[int],
    cache: KeyValueCache,
) -> Iterator[Int[Tensor, " B"]]:
    """The loop of `stream`, everything checked; `fresh` is what the model has not
    read.
    """
    generator = sampling.generator(fresh.device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=fresh.device)
    ended = torch.zeros(len(fresh), dtype=torch.bool, device=fresh.device)
    for _ in range(max_new_tokens):
        logits = model(fresh, cache=cache, head=_last_logits)
        drawn = torch.where(ended, fresh[:, -1], sampling.draw(logits, generator))
        yield drawn
        ended = ended | torch.isin(drawn, stops)
        if ended.all():
            return
        fresh = drawn[:, None]


def _last_logits(hidden: Tensor, head: nn.Module) -> Tensor:
    return head(hidden[:, -1])


def stream_text(
    model: StableLM2, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling
) -> Iterator[str]:
    """The continuation of `prompt` as text, piece by piece, until the end-of-text
    token. An empty prompt starts a text of its own.

    Characters whose bytes are spread over several tokens appear once they are whole.
    """
    end = tokenizer.eos_token_id
    ids = torch.tensor([tokenizer.encode(prompt) or [end]], device=model.lm_head.weight.device)
    steps = stream(model, ids, max_new_tokens, sampling, stop_ids=[end])
    drawn = (int(step[0]) for step in steps)
    return tokenizer.decode_stream(takewhile(lambda token: token != end, drawn))
