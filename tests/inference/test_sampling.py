"""Drawing: what each option keeps, beside transformers, and statistics at five
sigma.
"""

import math
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from slm2_minimal.config import DataError
from slm2_minimal.inference.sampling import Sampling


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),  # 0.4 is not yet half, 0.4 + 0.3 is
        ({"top_p": 0.39}, [1, 0, 0, 0]),
        ({"top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),  # of what top-k left: 4/9 + 3/9 > 0.7
        ({"min_p": 0.4}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0.5, "top_k": 2}, [16 / 25, 9 / 25, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.4}, [16 / 25, 9 / 25, 0, 0]),  # 4/16 is below 0.4
    ],
)
def test_frequencies(options: dict[str, Any], expected: list[float]) -> None:
    draws, order = 20_000, torch.tensor([2, 0, 3, 1])  # ids are not in order of probability
    logits = torch.empty(4)
    logits[order] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    sampling = Sampling(**options, seed=0)
    uniform = sampling.uniform([0], draws)[0]
    drawn = sampling.draw(logits.expand(draws, 4), uniform)
    counts = torch.bincount(drawn, minlength=4)[order]
    for count, p in zip(counts.tolist(), expected, strict=True):
        sigma = math.sqrt(draws * p * (1 - p))
        assert abs(count - draws * p) <= 5 * sigma, (counts, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7, "temperature": 1.7},
        {"temperature": 0.7, "top_p": 0.95},
        {"top_k": 40, "top_p": 0.8},
        {"temperature": 2.0, "min_p": 0.05},
        {"repetition_penalty": 1.1, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.1},
        {"top_k": 10_000, "min_p": 1e-9},
    ],
    ids=str,
)
def test_distributions_are_those_of_transformers(options: dict[str, Any]) -> None:
    """Over steep and flat distributions of a thousand ids; `seen` has repeated ids."""
    generator = torch.Generator().manual_seed(1)
    steepness = torch.tensor([0.1, 1.0, 3.0, 10.0]).repeat(8)[:, None]
    logits = torch.randn(32, 1000, generator=generator) * steepness
    ids = torch.randint(1000, (32, 60), generator=generator)
    seen = torch.zeros(32, 1000, dtype=torch.bool).scatter_(1, ids, True)

    makers = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    chain = [maker(options[name]) for name, maker in makers.items() if name in options]
    theirs = LogitsProcessorList(chain)(ids, logits.clone())
    ours = Sampling(**options).filter(logits, seen)
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


def test_greedy_with_a_penalty() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0], [-2.0, -1.0, -1.5]])
    seen = torch.tensor([[True, False, False], [False, True, False]])
    penalised = Sampling(temperature=0, repetition_penalty=2.0)
    assert penalised.draw(logits, torch.zeros(2), seen).tolist() == [1, 2]
    assert Sampling(temperature=0).draw(logits, torch.zeros(2), seen).tolist() == [0, 1]


def test_the_edges_of_the_uniform_numbers_draw_what_can_be_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]]).expand(2, 5)
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert Sampling().draw(logits, uniform).tolist() == [1, 3]


def test_the_numbers_of_a_row_are_its_own() -> None:
    sampling = Sampling(seed=5)
    three = sampling.uniform([0, 1, 2], 4)
    assert torch.equal(sampling.uniform([2], 9)[:, :4], three[2:])
    assert len(three.unique()) == 12
    assert not torch.equal(Sampling(seed=2**32 + 5).uniform([0], 4), three[:1])
    assert not torch.equal(Sampling(seed=-5).uniform([0], 4), three[:1])
    assert not torch.equal(Sampling().uniform([0], 4), Sampling().uniform([0], 4))


def test_cold_and_narrow_sampling_keep_the_likeliest() -> None:
    """What fp32 takes for 0 must not leave nothing to draw from."""
    logits, uniform = torch.tensor([[1.0, 30.0, 2.0], [5.0, 4.0, 3.0]]), torch.tensor([0.9, 0.9])
    for options in (
        {"temperature": 1e-6},
        {"top_p": 1e-300},
        {"top_k": 10**30, "top_p": 1e-40},
        {"min_p": 1.0},
    ):
        assert Sampling(**options).draw(logits, uniform).tolist() == [1, 0]


def test_limits_that_limit_nothing() -> None:
    logits = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(1)) * 3
    limits = {"top_p": 1.0, "top_k": 50_000, "min_p": 1e-30, "repetition_penalty": 1.0}
    assert torch.equal(Sampling(**limits).filter(logits), logits)


def test_ids_that_are_equally_likely_stay_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    for options in ({"top_k": 2}, {"top_p": 0.8}):
        assert not Sampling(**options).filter(logits).isinf().any()


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-40}, {"temperature": 1e-7}, {"seed": 2**64}, {"seed": 10**5000}],
    ids=["1e-40", "1e-7", "2**64", "5,000 digits"],
)
def test_numbers_that_have_no_place(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"^{next(iter(options))} = "):
        Sampling(**options)
