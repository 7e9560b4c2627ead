"""Optimizer groups, one step of AdamW by hand, and clipping."""

import pytest
import torch

from slm2_minimal.config import OptimizerConfig
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients, set_lr
from tests.models import SMALL


def test_decay_falls_on_matrices_only() -> None:
    model = StableLM2(SMALL)
    decayed, free = build_optimizer(model, OptimizerConfig()).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert all("norm" not in names[p] for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.95)
    assert decayed["eps"] == 1e-8


def test_one_adamw_step_by_hand() -> None:
    """First step of AdamW: decay by rate x 0.1, then move by rate x g / (|g| + eps),
    whatever the gradient's size.
    """
    model = StableLM2(SMALL)
    optimizer = build_optimizer(model, OptimizerConfig())
    weight, bias = (
        model.model.layers[0].self_attn.q_proj.weight,
        model.model.layers[0].self_attn.q_proj.bias,
    )
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -0.5)
    set_lr(optimizer, 0.01)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.01 * 0.1) + 0.01)
    torch.testing.assert_close(bias.detach(), torch.full_like(bias, 0.01))


def test_clipping_uses_the_global_norm() -> None:
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], 1.0).item() == pytest.approx(5.0)
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8), rel=1e-5)
    assert clip_gradients([a, b], 2.0).item() == pytest.approx(1.0, rel=1e-5)
    assert a.grad.item() == pytest.approx(0.6, rel=1e-5)  # below the limit nothing changes
