"""Sampling text from a model: temperature, top-k, top-p, stop ids, one token at a time
(with a key-value cache).
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm2_minimal.config import DataError
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

    Sampling ends early once every row has drawn a stop id; a row that ended before the
    others repeats the stop id it drew. Temperature 0 is greedy. The same seed gives the
    same ids on the same machine; None draws a fresh one.

    Raises:
        DataError: an empty prompt, more tokens than the context holds, or sampling
        options out of range.
    """
    steps = stream(
        model,
        input_ids,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=stop_ids,
    )
    return torch.cat([input_ids, *(ids[:, None] for ids in steps)], dim=1)


@torch.no_grad()
def stream(
    model: StableLM2,
    input_ids: Int[Tensor, "B T"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Collection[int] = (),
) -> Iterator[Int[Tensor, " B"]]:
    """`generate`, but yielding each step's B new ids as soon as they are drawn."""
    _check(model, input_ids, max_new_tokens, temperature, top_k, top_p)
    generator = torch.Generator(device=input_ids.device)
    _ = generator.seed() if seed is None else generator.manual_seed(seed)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=input_ids.device)
    cache = KeyValueCache.empty(model.config)
    fresh, ended = input_ids, torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        logits = model(fresh, cache=cache, head=lambda hidden, weight: hidden[:, -1] @ weight.T)
        drawn = sample(logits.float(), temperature, top_k, top_p, generator)
        drawn = torch.where(ended, fresh[:, -1], drawn)
        yield drawn
        ended = ended | torch.isin(drawn, stops)
        if ended.all():
            return
        fresh = drawn[:, None]


def sample(
    logits: Float[Tensor, "B V"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " B"]:
    """Draw one id per row. First the temperature, then the `top_k` likeliest, then the
    fewest that hold `top_p` of what is left.
    """
    if temperature == 0 or top_k == 1:
        return logits.argmax(dim=-1)
    probabilities = (logits / temperature).softmax(dim=-1)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    if top_p is not None:
        before = (
            ordered.cumsum(dim=-1) - ordered
        )  # the mass of the likelier ids: the first id is always kept
        ordered[before >= top_p] = 0
    return ids.gather(1, torch.multinomial(ordered, 1, generator=generator)).squeeze(1)


def _check(
    model: StableLM2,
    input_ids: Tensor,
    new: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    context = model.config.max_position_embeddings
    if input_ids.shape[1] == 0:
        raise DataError(
            "input_ids = 0 tokens: give a prompt of at least one token, the end-of-text token for"
            " free text"
        )
    if input_ids.shape[1] + new > context:
        raise DataError(
            f"max_new_tokens = {new}: with a prompt of {input_ids.shape[1]} more than the context"
            f" of {context}; ask for at most {max(0, context - input_ids.shape[1])}"
        )
    if new < 0:
        raise DataError(f"max_new_tokens = {new}: must not be negative")
    if not 0 <= temperature < float("inf"):
        raise DataError(
            f"temperature = {temperature}: must be a finite number from 0 on; 0 is greedy"
        )
    if top_k is not None and top_k < 1:
        raise DataError(f"top_k = {top_k}: must be at least 1; leave it out to keep all ids")
    if top_p is not None and not 0 < top_p <= 1:
        raise DataError(
            f"top_p = {top_p}: must lie above 0 and at most at 1; leave it out to keep all ids"
        )


def stream_text(
    model: StableLM2, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, **options: Any
) -> Iterator[str]:
    """The continuation of `prompt` as text, piece by piece, until the end-of-text
    token. An empty prompt starts a text of its own.

    `options` are those of `generate`. Characters whose bytes are spread over several
    tokens appear once they are whole.
    """
    ids = tokenizer.encode(prompt) or [tokenizer.eos_token_id]
    device = model.lm_head.weight.device
    steps = stream(
        model,
        torch.tensor([ids], device=device),
        max_new_tokens,
        stop_ids=[tokenizer.eos_token_id],
        **options,
    )
    drawn = (int(step[0]) for step in steps)
    yield from tokenizer.decode_stream(token for token in drawn if token != tokenizer.eos_token_id)
