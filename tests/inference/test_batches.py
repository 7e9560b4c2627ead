"""Batches of prompts of different lengths, and several samples of one prompt: each row
is what it would be alone.
"""

import pytest
import torch

from slm2_minimal.inference.generate import generate, prefill, stream
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.transformer import StableLM2
from tests.inference.conftest import SMALL, random_model

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]


def written(model: StableLM2, prompts: list[list[int]], sampling: Sampling, **options) -> list:
    steps = list(stream(model, prompts, 12, sampling, **options))
    return torch.stack(steps, dim=1).tolist()


@pytest.mark.parametrize("heads", [2, 1])
def test_cached_equals_uncached_at_every_step(heads: int) -> None:
    """Of ragged rows, by the definition: each row alone, in full, without a cache."""
    config = SMALL.replace(num_key_value_heads=heads)
    model = random_model(config)
    cache = KeyValueCache.allocate(config, 4, 20, torch.device("cpu"), torch.float32)
    rows = [list(prompt) for prompt in PROMPTS]
    starts = [7 - len(prompt) for prompt in PROMPTS]
    with torch.no_grad():
        for number, (prompt, start) in enumerate(zip(PROMPTS, starts, strict=True)):
            prefill(model, torch.tensor([prompt]), cache.row(number, start))
        cache.align(starts, 7)
        for new in torch.randint(1024, (5, 4, 2), generator=torch.Generator().manual_seed(1)):
            logits = model(new, cache=cache)  # two ids a row at once
            for row, ids, ours in zip(rows, new.tolist(), logits, strict=True):
                row += ids
                torch.testing.assert_close(ours, model(torch.tensor([row]))[0, -2:])


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_a_row_does_not_depend_on_its_neighbours(
    model: StableLM2, options: dict[str, float]
) -> None:
    sampling = Sampling(**options, repetition_penalty=1.2, seed=3)
    alone = [written(model, [prompt], sampling)[0] for prompt in PROMPTS]
    assert written(model, PROMPTS, sampling) == alone
    assert written(model, PROMPTS[::-1], sampling) == alone[::-1]


def test_rows_of_one_length_do_not_either(model: StableLM2) -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    together = generate(model, ids, 12, seed=1)
    alone = [generate(model, row[None], 12, seed=1) for row in ids]
    assert torch.equal(together, torch.cat(alone))


def test_samples_differ_and_count_from_0(model: StableLM2) -> None:
    sampling = Sampling(seed=2)
    three = written(model, PROMPTS[:1], sampling, samples=3)
    assert len({tuple(row) for row in three}) == 3
    assert written(model, PROMPTS[:1] * 3, sampling) == three, "as if each had been read alone"
    among = written(model, PROMPTS, sampling, samples=3)
    assert among[:3] == three
    assert among[3:6] == written(model, PROMPTS[1:2], sampling, samples=3)


def test_a_prompt_is_read_once_for_all_its_samples(model: StableLM2) -> None:
    shapes = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda block, inputs: shapes.append(tuple(inputs[0].shape[:2]))
    )
    written(model, PROMPTS[:3], Sampling(seed=2), samples=5)
    hook.remove()
    assert shapes == [(1, 3), (1, 1), (1, 7)] + [(15, 1)] * 11


def test_what_stands_before_a_row_is_never_seen(model: StableLM2) -> None:
    cache = KeyValueCache.allocate(SMALL, 2, 12, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        prefill(model, torch.tensor([PROMPTS[2]]), cache.row(0, 0))
        prefill(model, torch.tensor([PROMPTS[3]]), cache.row(1, 5))
        cache.align([0, 5], 7)
        new = torch.tensor([[3], [4]])
        expected = model(new, cache=cache)
        for layer in cache.layers:
            layer[:, 1, :, :5] = 100.0
        cache.truncate(7)
        assert torch.equal(model(new, cache=cache), expected)


def test_a_row_that_ended_repeats_its_stop_id(model: StableLM2) -> None:
    free = written(model, PROMPTS, Sampling(seed=1))
    stops = {free[0][4], free[2][9]}
    steps = list(stream(model, PROMPTS, 12, Sampling(seed=1), stop_ids=stops))
    for row, expected in zip(torch.stack(steps, dim=1).tolist(), free, strict=True):
        end = next((i for i, token in enumerate(expected) if token in stops), 11)
        assert row == expected[: end + 1] + [expected[end]] * (len(row) - end - 1)
