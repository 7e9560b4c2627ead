"""Rounding to nearest by hand, GPTQ against the same without its short cuts, and what
neither may touch.
"""

import itertools

import pytest
import torch
from torch import Tensor, nn

from slm2_minimal.inference.quantise import (
    DAMPING,
    gptq,
    grid,
    inverse_hessian,
    quantise,
    quantised_linear,
    round_to_nearest,
    to_codes,
)
from slm2_minimal.model.quantised import Quantisation, quantised_layers
from slm2_minimal.model.transformer import StableLM2
from tests.models import SMALL


def correlated(seed: int, tokens: int, columns: int) -> Tensor:
    """Inputs as layers have them: columns that go together, of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    return torch.randn(tokens, columns, generator=generator) @ mixing


def test_round_to_nearest_by_hand() -> None:
    weight = torch.tensor([[7.0, -3.4, 0.6, 1.0], [0.0, 0.0, 14.0, -14.0]])
    codes, scale, offset = round_to_nearest(weight, Quantisation(4, 2))
    assert scale.tolist() == [[1.0, 1 / 7], [1.0, 2.0]] or torch.allclose(
        scale, torch.tensor([[1.0, 1 / 7], [1.0, 2.0]]), rtol=2**-8
    )
    assert codes.tolist() == [[7, -3, 4, 7], [0, 0, 7, -7]]
    assert offset.eq(0).all()


def test_asymmetric_by_hand() -> None:
    """From the least to the largest weight in 15 steps: codes -8 to 7."""
    weight = torch.tensor([[1.0, 16.0, 2.4, 9.0], [5.0, 5.0, 5.0, 5.0]])
    codes, scale, offset = round_to_nearest(weight, Quantisation(4, 4, symmetric=False))
    assert scale.tolist() == [[1.0], [1.0]]
    assert offset.tolist() == [[9.0], [5.0]]
    assert codes.tolist() == [[-8, 7, -7, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_weight_is_further_off_than_half_a_step(bits: int, symmetric: bool) -> None:
    """And what rounding the scale to bf16 adds."""
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    settings = Quantisation(bits, 32, symmetric)
    codes, scale, offset = round_to_nearest(weight, settings)
    back = codes.view(50, 2, 32) * scale[..., None] + offset[..., None]
    off = (back.view(50, 64) - weight).abs().view(50, 2, 32)
    extra = 2**-8 * (2 ** (bits - 1) + offset.abs() / scale)
    assert (off <= (scale * (0.5 + extra))[..., None]).all()
    assert codes.min().item() >= -(2 ** (bits - 1))
    assert codes.max().item() < 2 ** (bits - 1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_bits_and_smaller_groups_are_closer(symmetric: bool) -> None:
    linear = nn.Linear(256, 64, bias=False)
    errors = [
        (quantised_linear(linear, Quantisation(bits, group, symmetric)).weights() - linear.weight)
        .norm().item()
        for bits, group in ((8, 32), (8, None), (4, 32), (4, 128), (4, None))
    ]  # fmt: skip
    assert errors == sorted(errors)
    assert errors[0] * 10 < errors[2]


# GPTQ


def slow_gptq(weight: Tensor, inputs: Tensor, settings: Quantisation) -> Tensor:
    """The codes, column by column; after each, the least squares solution for all
    columns that are left, from the normal equations.
    """
    weight, inputs = weight.double().clone(), inputs.double()
    hessian = inputs.T @ inputs / len(inputs)
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    columns = weight.shape[1]
    group = settings.group or columns
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    for column in range(columns):
        if column % group == 0:
            scale, offset = grid(weight[:, column : column + group].float(), settings)
        code = to_codes(weight[:, column].float(), scale, offset, settings.bits)
        codes[:, column] = code
        error = weight[:, column] - (code * scale + offset)
        left = slice(column + 1, columns)
        if column + 1 < columns:
            move = torch.linalg.solve(hessian[left, left], hessian[left, column])
            weight[:, left] += torch.outer(error, move)
    return codes


@pytest.mark.parametrize("group", [None, 8, 48])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_is_least_squares_column_by_column(group: int | None, symmetric: bool) -> None:
    """Over blocks and groups; a code at the border may fall to the other side."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 144, generator=generator)
    inputs = correlated(1, 400, 144)
    settings = Quantisation(4, group, symmetric)
    codes, _, _ = gptq(weight, inverse_hessian(inputs), settings)
    same = codes == slow_gptq(weight, inputs, settings)
    assert same.all(dim=1).float().mean() >= 0.9
    assert same.float().mean() > 0.98


def test_gptq_beside_the_best_of_all_codes() -> None:
    """Of four columns, all 16^4 codes can be tried: GPTQ lies between the best and
    round to nearest, and most of the way to the best.
    """
    settings = Quantisation(4, None, method="gptq")
    every = torch.tensor(list(itertools.product(range(-8, 8), repeat=4)), dtype=torch.float32)
    totals = torch.zeros(3)
    for seed in range(20):
        weight = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
        inputs = correlated(seed, 50, 4)
        nearest, scale, _ = round_to_nearest(weight, settings)
        guided, _, _ = gptq(weight, inverse_hessian(inputs), settings)
        errors = ((every * scale - weight) @ inputs.T).square().sum(1)
        mine = [((c * scale - weight) @ inputs.T).square().sum() for c in (guided, nearest)]
        totals += torch.stack([errors.min(), *mine])
    best, guided_total, nearest_total = totals.tolist()
    assert best <= guided_total < best + 0.5 * (nearest_total - best)


def test_gptq_of_inputs_that_tell_nothing_is_round_to_nearest() -> None:
    """Columns that do not go together cannot make up for each other; nor can inputs
    that are all zero.
    """
    weight = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    settings = Quantisation(4, 32)
    for inputs in (torch.eye(64), torch.zeros(5, 64)):
        codes, scale, _ = gptq(weight, inverse_hessian(inputs), settings)
        assert torch.equal(codes, round_to_nearest(weight, settings)[0])
        assert torch.equal(scale, round_to_nearest(weight, settings)[1])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [8, 4])
def test_gptq_keeps_outputs_better(bits: int, seed: int) -> None:
    """On inputs that it has not seen; and its weights are further off."""
    torch.manual_seed(seed)
    linear = nn.Linear(96, 64, bias=False)
    settings = Quantisation(bits, 32, method="gptq")
    seen, unseen = correlated(seed, 2000, 96).split(1000)
    nearest = quantised_linear(linear, settings).weights()
    guided = quantised_linear(linear, settings, seen).weights()
    lost = [((each - linear.weight) @ unseen.T).norm() for each in (guided, nearest)]
    assert lost[0] < 0.9 * lost[1]
    assert (guided - linear.weight).norm() > (nearest - linear.weight).norm()


# The whole model


def test_the_original_is_left_as_it_is() -> None:
    model = StableLM2(SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([[1, 2, 3, 4]])
    few = quantise(model, 4, 16, method="gptq", calibration=(ids,))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in model.parameters())
    assert len(list(quantised_layers(few))) == 7 + 1
    table = few.model.embed_tokens.weight
    assert table.data_ptr() == model.model.embed_tokens.weight.data_ptr(), "not a copy"
    few.bfloat16()
    assert model.model.embed_tokens.weight.dtype == torch.float32


def test_a_layer_sees_what_quantised_layers_before_it_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that come to it in the finished model, once."""
    from slm2_minimal.inference import quantise as module

    seen: list[Tensor] = []
    own = module.quantised_linear

    def spy(linear: nn.Linear, settings: Quantisation, inputs: Tensor) -> nn.Module:
        seen.append(inputs.clone())
        return own(linear, settings, inputs)

    monkeypatch.setattr(module, "quantised_linear", spy)
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 1, 2]])
    few = quantise(StableLM2(SMALL), 4, 16, method="gptq", calibration=(ids,))
    arrived: list[Tensor] = []
    for _, layer in quantised_layers(few):
        layer.register_forward_pre_hook(lambda layer, args: arrived.append(args[0]))
    few(ids)
    assert len(seen) == len(arrived) == 8
    for a, b in zip(seen, arrived, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
