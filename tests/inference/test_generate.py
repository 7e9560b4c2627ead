"""Sampling: what each option keeps, statistics at five sigma, stop ids, streaming, and
the cache behind it.
"""

import math
from typing import Any

import pytest
import torch

from slm2_minimal.config import DataError, ModelConfig
from slm2_minimal.inference.generate import generate, stream, stream_text
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import load_tokenizer

SMALL = ModelConfig(
    vocab_size=1024,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=48,
    bos_token_id=0,
    eos_token_id=0,
)


@pytest.fixture(scope="module")
def model() -> StableLM2:
    model = StableLM2(SMALL)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),  # 0.4 is not yet half, 0.4 + 0.3 is
        ({"top_p": 0.39}, [1, 0, 0, 0]),
        ({"top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),  # of what top-k left: 4/9 + 3/9 > 0.7
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0.5, "top_k": 2}, [16 / 25, 9 / 25, 0, 0]),
    ],
)
def test_frequencies(options: dict, expected: list[float]) -> None:
    draws, order = 20_000, torch.tensor([2, 0, 3, 1])  # ids are not in order of probability
    logits = torch.empty(4)
    logits[order] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    sampling = Sampling(**options, seed=0)
    drawn = sampling.draw(logits.expand(draws, 4), sampling.generator(torch.device("cpu")))
    counts = torch.bincount(drawn, minlength=4)[order]
    for count, p in zip(counts.tolist(), expected, strict=True):
        sigma = math.sqrt(draws * p * (1 - p))
        assert abs(count - draws * p) <= 5 * sigma, (counts, expected)


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
    cache = KeyValueCache.allocate(SMALL, 2, 20, PROMPT.device, torch.float32)
    first = torch.stack(list(stream(model, PROMPT, 5, greedy, cache=cache)), dim=1)
    assert cache.length == 3 + 4, "the last that was drawn has not been read"
    second = torch.stack(list(stream(model, first[:, -1:], 7, greedy, cache=cache)), dim=1)
    assert torch.equal(torch.cat([PROMPT, first, second], dim=1), whole)
    with pytest.raises(DataError, match="more than the context of 6; ask for at most 5"):
        stream(model, PROMPT[:, :1], 6, greedy, cache=cache)


def test_text_streams(model: StableLM2) -> None:
    tokenizer = load_tokenizer("tiny")
    pieces = list(stream_text(model, tokenizer, "De fiets", 20, Sampling(seed=1)))
    assert len(pieces) > 1
    ids = torch.tensor([tokenizer.encode("De fiets")])
    drawn = generate(model, ids, 20, seed=1, stop_ids=[0])[0, ids.shape[1] :].tolist()
    assert "".join(pieces) == tokenizer.decode([i for i in drawn if i != 0])
    assert "".join(stream_text(model, tokenizer, "", 5, Sampling(seed=1))), "a text of its own"


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
    ],
)
def test_bad_options(model: StableLM2, arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(**({"model": model, "input_ids": PROMPT, "max_new_tokens": 4} | arguments))


def test_what_cannot_be_is_refused_before_the_first_step(model: StableLM2) -> None:
    """When the stream is asked for, not when its first id is."""
    with pytest.raises(DataError, match="ask for at most 45"):
        stream(model, PROMPT, 46, Sampling())
    with pytest.raises(DataError, match="max_new_tokens = 48"):
        stream_text(model, load_tokenizer("tiny"), "", 48, Sampling())
    with pytest.raises(DataError, match="temperature = -1"):
        Sampling(temperature=-1)


def test_cold_and_narrow_sampling_keep_the_likeliest() -> None:
    """What fp32 takes for 0 must not leave nothing to draw from."""
    logits = torch.tensor([[1.0, 30.0, 2.0], [5.0, 4.0, 3.0]])
    for options in ({"temperature": 1e-6}, {"top_p": 1e-300}, {"top_k": 10**30, "top_p": 1e-40}):
        assert Sampling(**options).draw(logits).tolist() == [1, 0]


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-40}, {"temperature": 1e-7}, {"seed": 2**64}, {"seed": 10**5000}],
    ids=["1e-40", "1e-7", "2**64", "5,000 digits"],
)
def test_numbers_that_have_no_place(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"^{next(iter(options))} = "):
        Sampling(**options)
