"""Ids: greedy against the model without a cache, seeds, stop ids, streaming, and the
cache behind it.
"""

import pytest
import torch

from slm2_minimal.config import DataError
from slm2_minimal.inference.generate import generate, stream
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.transformer import StableLM2
from tests.inference.conftest import SMALL

PROMPT = torch.tensor([[5, 6, 7], [8, 9, 10]])


def test_greedy_equals_argmax_without_a_cache(model: StableLM2) -> None:
    out = generate(model, PROMPT, 10, temperature=0)
    ids = PROMPT
    for _ in range(10):
        ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(out, ids)
    assert torch.equal(generate(model, PROMPT, 10, top_k=1, seed=3), ids)
    assert torch.equal(generate(model, PROMPT, 10, top_p=1e-6, seed=3), ids)


def test_seed_decides(model: StableLM2) -> None:
    a, b, c = (generate(model, PROMPT, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == (2, 23)
    assert torch.equal(a[:, :3], PROMPT)


def test_global_random_state_is_neither_used_nor_changed(model: StableLM2) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    generate(model, PROMPT, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_stop_ids(model: StableLM2) -> None:
    free = generate(model, PROMPT, 20, seed=1)
    stop = int(free[0, 8])
    stopped = generate(model, PROMPT, 20, seed=1, stop_ids=[stop])
    first = (free[0, 3:] == stop).nonzero()[0].item() + 3
    assert torch.equal(stopped[0, : first + 1], free[0, : first + 1])
    assert (stopped[0, first:] == stop).all()  # the row that ended repeats the stop id
    likeliest = int(generate(model, PROMPT[:1], 1, temperature=0)[0, -1])
    one_row = generate(model, PROMPT[:1], 20, temperature=0, stop_ids=[likeliest])
    assert one_row.shape == (1, 4)


def test_stream_gives_the_same_ids(model: StableLM2) -> None:
    pieces = list(stream(model, PROMPT, 12, Sampling(seed=4, top_p=0.9)))
    assert len(pieces) == 12
    whole = generate(model, PROMPT, 12, seed=4, top_p=0.9)
    assert torch.equal(torch.stack(pieces, dim=1), whole[:, 3:])


def test_a_cache_of_the_caller_holds_what_came_before(model: StableLM2) -> None:
    """A text that is written in two parts, as a chat is, is that written in one."""
    greedy = Sampling(temperature=0)
    whole = generate(model, PROMPT, 12, temperature=0)
    cache = KeyValueCache.allocate(SMALL, 2, 16, PROMPT.device, torch.float32)
    first = torch.stack(list(stream(model, PROMPT, 5, greedy, cache=cache)), dim=1)
    assert cache.length == 3 + 4, "the last that was drawn has not been read"
    before = torch.cat([PROMPT, first], dim=1)
    lengths = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda block, inputs: lengths.append(inputs[0].shape[1])
    )
    second = torch.stack(list(stream(model, before, 7, greedy, cache=cache)), dim=1)
    hook.remove()
    assert lengths == [1] * 7, "only what is new is read"
    assert torch.equal(torch.cat([before, second], dim=1), whole)
    with pytest.raises(DataError, match="more than the context of 16; ask for at most 13"):
        stream(model, PROMPT, 14, greedy, cache=cache)


def test_a_prompt_is_read_in_chunks(model: StableLM2, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(1, 38)[None]
    whole = generate(model, ids, 8, temperature=0)
    monkeypatch.setattr("slm2_minimal.inference.generate.CHUNK", 5)
    lengths = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda block, inputs: lengths.append(inputs[0].shape[1])
    )
    chunked = generate(model, ids, 8, temperature=0)
    hook.remove()
    assert lengths == [5] * 7 + [2] + [1] * 7
    assert torch.equal(chunked, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "input_ids = 0 tokens"),
        ({"max_new_tokens": 46}, "ask for at most 45"),
        ({"max_new_tokens": -3}, "max_new_tokens = -3"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"min_p": 0.0}, "min_p = 0.0"),
        ({"min_p": 2.0}, "min_p = 2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty = inf"),
        ({"input_ids": torch.zeros(1, 49, dtype=torch.int64)}, "prompt = 49 tokens: more than"),
    ],
)
def test_bad_options(model: StableLM2, arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(**({"model": model, "input_ids": PROMPT, "max_new_tokens": 4} | arguments))


def test_what_cannot_be_is_refused_before_the_first_step(model: StableLM2) -> None:
    """When the stream is asked for, not when its first id is."""
    with pytest.raises(DataError, match="ask for at most 45"):
        stream(model, PROMPT, 46, Sampling())
    with pytest.raises(DataError, match="prompt 2 = 49 tokens"):
        stream(model, [[1], [2] * 49], 1, Sampling())
    with pytest.raises(DataError, match=r"prompts = \[\]: none"):
        stream(model, [], 1, Sampling())
