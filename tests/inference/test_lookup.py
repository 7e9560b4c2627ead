"""Prompt lookup: what is drafted, that the ids are those of plain greedy text, and that
it takes fewer steps.
"""

import pytest
import torch
from torch import nn

from slm2_minimal.config import DataError
from slm2_minimal.inference.generate import generate
from slm2_minimal.inference.lookup import DRAFT, find_draft, stream_lookup
from slm2_minimal.inference.quantise import quantise
from slm2_minimal.model.quantised import quantised_layers
from slm2_minimal.model.transformer import StableLM2
from tests.inference.conftest import SMALL, random_model

CONFIG = SMALL.replace(vocab_size=32, max_position_embeddings=128)
REPEATING = [3, 4, 5, 6, 7, 8, 9] * 4


@pytest.mark.parametrize(
    ("ids", "draft"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], [4, 5, 1, 2, 3]),
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], [5, 1, 2, 3]),  # where they stood last
        ([1, 1, 1, 1, 1], [1]),
        ([*range(20), 0, 1, 2], [*range(3, 3 + DRAFT)]),
        ([1, 2, 3, 4, 5], []),
        ([1, 2, 3], []),
        ([1, 2], []),
    ],
)
def test_what_is_drafted(ids: list[int], draft: list[int]) -> None:
    assert find_draft(ids) == draft


def repeats_itself() -> StableLM2:
    """A model that tends to write what followed the last id before."""
    return random_model(CONFIG, 0.12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ids_are_those_of_greedy_steps(dtype: torch.dtype) -> None:
    """Over many prompts, several of them full of repetitions."""
    model = repeats_itself().to(dtype)
    generator = torch.Generator().manual_seed(1)
    for length in range(1, 40):
        ids = torch.randint(32, (length,), generator=generator).tolist()
        prompt = (ids + REPEATING + ids)[-60:]
        plain = generate(model, torch.tensor([prompt]), 50, temperature=0)[0, len(prompt) :]
        assert list(stream_lookup(model, prompt, 50)) == plain.tolist()


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
@pytest.mark.parametrize("kernel_rows", [0, 1, 2**31])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_of_integer_weights(
    bits: int, group: int | None, kernel_rows: int, dtype: torch.dtype
) -> None:
    """Also where a kernel takes single ids, and floating-point weights a draft."""
    config = CONFIG.replace(vocab_size=64, hidden_size=64, intermediate_size=128)
    model = quantise(random_model(config, 0.12), bits, group).to(dtype)
    for _, layer in quantised_layers(model):
        layer.kernel_rows = kernel_rows
    for length in range(1, 10):
        prompt = [*REPEATING, length, 30 - length][length:]
        plain = generate(model, torch.tensor([prompt]), 40, temperature=0)[0, len(prompt) :]
        assert list(stream_lookup(model, prompt, 40)) == plain.tolist()


def test_it_takes_fewer_steps() -> None:
    model = repeats_itself()
    steps = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda block, inputs: steps.append(inputs[0].shape[1])
    )
    written = list(stream_lookup(model, REPEATING, 64))
    hook.remove()
    assert len(written) == 64
    assert max(steps[1:]) == 1 + DRAFT
    assert len(steps) < 40


def test_stop_ids_and_ends() -> None:
    model = repeats_itself()
    plain = generate(model, torch.tensor([REPEATING]), 40, temperature=0)[0, 28:].tolist()
    for count in (0, 1, 2, 9, 40):
        assert list(stream_lookup(model, REPEATING, count)) == plain[:count]
    stop = plain[20]
    until = plain[: plain.index(stop) + 1]
    assert list(stream_lookup(model, REPEATING, 40, stop_ids=[stop])) == until
    assert len(list(stream_lookup(model, REPEATING, 100))) == 100, "up to the context's last"
    with pytest.raises(DataError, match="ask for at most 100"):
        stream_lookup(model, REPEATING, 101)


class Noisy(nn.Module):
    """A head that rounds otherwise where several positions are computed at once, as a
    kernel may that is chosen by the number of rows.
    """

    def __init__(self, head: nn.Module, noise: float) -> None:
        super().__init__()
        self.head, self.noise = head, noise

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden)
        if hidden.dim() == 3 and hidden.shape[1] > 1:
            wave = torch.sin(torch.arange(logits.numel()).view(logits.shape) * 1.7)
            logits = logits + self.noise * wave
        return logits


def test_a_draft_decides_nothing_that_rounding_could(monkeypatch: pytest.MonkeyPatch) -> None:
    """With coarse rounding the ids are still those of single steps, and more of these
    are taken.
    """
    model = repeats_itself()
    plain = generate(model, torch.tensor([REPEATING]), 60, temperature=0)[0, 28:].tolist()
    scale = float(model(torch.tensor([REPEATING])).detach().std())
    model.lm_head = Noisy(model.lm_head, 0.3 * scale)
    assert list(stream_lookup(model, REPEATING, 60)) == plain
    monkeypatch.setattr("slm2_minimal.inference.lookup.SURE", 0)
    assert list(stream_lookup(model, REPEATING, 60)) != plain, "the noise is enough to mislead"
