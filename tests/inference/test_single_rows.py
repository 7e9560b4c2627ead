"""A model whose large layers multiply single rows by the compiled product."""

import logging

import pytest
import torch
from torch import nn

from slm2_minimal.inference import single_rows
from slm2_minimal.inference.generate import generate
from slm2_minimal.inference.single_rows import SingleRowLinear, speed_up
from slm2_minimal.model import compiled
from slm2_minimal.model.transformer import StableLM2
from tests.inference.conftest import SMALL, random_model

needs_compiler = pytest.mark.skipif(
    compiled.library() is None, reason="no C++ compiler, or a processor without AVX2"
)
PROMPT = torch.tensor([[1, 2, 3]])


def faster(model: StableLM2, monkeypatch: pytest.MonkeyPatch, own: float = 1.0) -> StableLM2:
    """The model, sped up as if its layers were large and torch's product took 2 ms."""
    times = iter([own, 2.0])
    monkeypatch.setattr(compiled, "LARGE", 1)
    monkeypatch.setattr(single_rows, "milliseconds", lambda call, x: next(times))
    speed_up(model)
    return model


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_text(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(SMALL, 0.1).to(dtype)
    expected = generate(model, PROMPT, 20, temperature=0)
    stored = {name: value.clone() for name, value in model.state_dict().items()}

    calls = []
    own = compiled.product
    monkeypatch.setattr(compiled, "product", lambda x, w: (calls.append(len(x)), own(x, w))[1])
    faster(model, monkeypatch)
    assert torch.equal(generate(model, PROMPT, 20, temperature=0), expected)
    linears = sum(isinstance(part, nn.Linear) for part in model.modules())
    assert calls == [1] * (19 * linears + 1), "every step, and the head behind the prompt"
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name])


@needs_compiler
def test_gradients_and_autocast_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = faster(random_model(SMALL, 0.1), monkeypatch)
    one = PROMPT[:, :1]
    model(one).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(one).dtype == torch.bfloat16


@needs_compiler
def test_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "slm2_minimal"):
        model = faster(random_model(SMALL, 0.1), monkeypatch, own=3.0)
    assert not any(isinstance(part, SingleRowLinear) for part in model.modules())
    (line,) = [each.getMessage() for each in caplog.records if "ms a row" in each.getMessage()]
    assert "3.00 ms a row, torch's 2.00; the second is used" in line


def test_small_models_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "library", lambda: pytest.fail("compiled"))
    speed_up(random_model(SMALL, 0.1))
