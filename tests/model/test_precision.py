"""Weights of 16 bits: read as they lie, and computing in fp32 where that is wanted."""

from pathlib import Path

import pytest
import torch

from slm2_minimal.inference.quantise import quantise
from slm2_minimal.model.precision import Fp32Activations
from slm2_minimal.model.transformer import StableLM2
from tests.models import TINY, randomised

IDS = torch.arange(40).view(2, 20) * 7
CONFIG = TINY.replace(norm_bias=True, final_norm_bias=True)


def mapped(model: StableLM2, file: Path) -> set[str]:
    """The parameters that lie in mappings of a file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(str(file))]
    places = [(int(begin, 16), int(end, 16)) for begin, end in ranges]
    return {
        name
        for name, parameter in model.named_parameters()
        if any(begin <= parameter.data_ptr() < end for begin, end in places)
    }


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_folder_in_its_own_format(stored: torch.dtype, tmp_path: Path) -> None:
    """Without a copy where it has one of ours, and let go with the model."""
    source = randomised(CONFIG).to(stored)
    source.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    model = StableLM2.from_pretrained(tmp_path, dtype=None)

    names = {name for name, _ in model.named_parameters()}
    kept = torch.float32 if stored == torch.float64 else stored
    assert {parameter.dtype for parameter in model.parameters()} == {kept}
    assert mapped(model, file) == (names if stored == kept else set())
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.to(kept)), name
    assert mapped(StableLM2.from_pretrained(tmp_path, torch.float32), file) == (
        names if stored == torch.float32 else set()
    )

    del model
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_fp32_on_weights_of_16_bits() -> None:
    """What the same weights give in fp32, and nothing of the rounding of 16 bits."""
    for dtype in (torch.bfloat16, torch.float16):
        model = randomised(CONFIG).to(dtype)
        with torch.no_grad():
            with Fp32Activations():
                logits = model(IDS)
            rounded = model(IDS).float()
            expected = model.float()(IDS)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert (rounded - expected).abs().max() > 100 * (logits - expected).abs().max()


def test_a_matrix_of_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm2_minimal.model.precision.CHUNK", 1000)
    linear = torch.nn.Linear(32, 100).bfloat16()
    x = torch.randn(3, 32)
    with Fp32Activations():
        y = linear(x)
    torch.testing.assert_close(y, linear.float()(x))


def test_integer_weights_beside_them() -> None:
    few = quantise(randomised(CONFIG), 4, 32, symmetric=False).bfloat16()
    with torch.no_grad():
        with Fp32Activations():
            logits = few(IDS)
        torch.testing.assert_close(logits, few.float()(IDS), rtol=1e-5, atol=1e-5)
