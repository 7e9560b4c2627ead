"""The compiled products, against torch's in fp64."""

import logging

import pytest
import torch

from slm2_minimal.model import compiled, quantised
from slm2_minimal.model.quantised import Quantisation, QuantisedLinear

needs_compiler = pytest.mark.skipif(
    compiled.library() is None, reason="no C++ compiler, or a processor without AVX2"
)
KINDS = [(8, None, True), (8, 32, False), (8, 64, True), (4, None, True), (4, 32, True),
         (4, 32, False), (4, 96, False)]  # fmt: skip


def layer_of(bits: int, group: int | None, symmetric: bool) -> QuantisedLinear:
    """37 rows of 192 columns, of all codes, with a bias."""
    generator = torch.Generator().manual_seed(bits)
    settings = Quantisation(bits, group, symmetric)
    highest = 2 ** (bits - 1)
    codes = torch.randint(-highest, highest, (37, 192), generator=generator, dtype=torch.int8)
    shape = (37, settings.groups(192))
    scale = torch.rand(shape, generator=generator) + 0.5
    offset = torch.randn(shape, generator=generator)
    return QuantisedLinear.of(codes, scale, offset, torch.ones(37), settings)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 65)])
def test_numbers(dtype: torch.dtype, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator).to(dtype)
    weight = torch.randn(7, columns, generator=generator).to(dtype)
    found = compiled.product(x, weight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (x.double() @ weight.double().T).float())


@needs_compiler
@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
def test_integers(bits: int, group: int | None, symmetric: bool) -> None:
    """Activations keep 15 or 7 bits of the largest of 32, whatever the others are."""
    layer = layer_of(bits, group, symmetric)
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(1))
    x[1, 32:64] *= 1e4
    x[2] = 0
    expected = x.double() @ layer.weights().double().T
    error = (layer.compiled_product(x).double() - expected).norm(dim=1)
    rounding = 2.0 ** -(2 * bits - 1)  # of half a step, beside the largest
    assert (error <= 2 * rounding * expected.norm(dim=1)).all()
    assert error[0] > 0, "exactly the same: is it another product?"


@needs_compiler
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_no_number_is_not_hidden(bits: int) -> None:
    for value in (float("nan"), float("inf")):
        x = torch.ones(1, 192)
        x[0, 100] = value
        assert not layer_of(bits, 32, True).compiled_product(x).isfinite().any()


@needs_compiler
def test_between_the_other_ways(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer chooses it where it is measured to be faster, says so, and gives the
    same whichever way it goes, and went before.
    """
    monkeypatch.setattr(compiled, "LARGE", 1)
    monkeypatch.setattr(quantised, "_measured", {})
    monkeypatch.setattr(QuantisedLinear, "measure", lambda *_: (quantised.COMPILED, 2))
    layer = layer_of(8, 32, True)
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(1))
    expected = layer.plain_product(x) + 1
    stored = layer.codes.clone()
    layer.kernel_product(x)
    assert not torch.equal(layer.codes, stored), "laid out for torch's kernel"
    for rows in (1, 2, 3):
        torch.testing.assert_close(layer(x[:rows]), expected[:rows], rtol=1e-3, atol=1e-2)
        assert torch.equal(layer.codes, stored)

    monkeypatch.undo()
    monkeypatch.setattr(compiled, "LARGE", 1)
    with caplog.at_level(logging.INFO, "slm2_minimal"):
        kernel, rows = layer.measure(layer.kernels(), x[:1])
    assert kernel in (quantised.KERNEL, quantised.COMPILED)
    assert rows >= 0
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.count("ms a row") == 2


def test_what_it_is_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "library", lambda: True)
    assert not compiled.takes(2048, 64, 1023), "small"
    assert compiled.takes(2048, 64, 1024)
    assert not compiled.takes(2048, 128, 1024), "groups of 16"
    assert not compiled.takes(2080, 65, 1024), "columns that do not fill a block of 64"


def test_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch's kernels are there still, and one line says what is not."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(compiled, "LARGE", 1)
    compiled.library.cache_clear()
    with caplog.at_level(logging.INFO, "slm2_minimal"):
        assert list(layer_of(8, 32, True).kernels()) == [quantised.KERNEL]
        assert compiled.library() is None
    compiled.library.cache_clear()
    (line,) = [each.getMessage() for each in caplog.records if "slower" in each.getMessage()]
    assert "no-such-compiler" in line
