"""FLOPs of a step by formula, against torch's own count of the products that run."""

import pytest
import torch

from slm2_minimal.config import ModelConfig
from slm2_minimal.model.flops import flops_per_token
from slm2_minimal.model.transformer import StableLM2
from tests.models import SMALL


def test_flops_of_the_full_model() -> None:
    flops = flops_per_token(ModelConfig.preset("stablelm-2-1_6b"), 4096)
    assert flops == 6 * (1_644_515_328 - 205_520_896) + 12 * 24 * 2048 * 4096
    assert flops == pytest.approx(1.105e10, rel=1e-3)
    assert flops * 8_388_608 / 512 / 170e12 == pytest.approx(
        1.065, abs=5e-4
    )  # seconds a step at the reported speed


def test_flops_against_torchs_counter() -> None:
    """torch counts the products that really run: attention's causal half included, as
    in our formula.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config = SMALL.replace(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, max_position_embeddings=32
    )
    model, ids = StableLM2(config), torch.zeros(3, 32, dtype=torch.int64)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(ids).sum().backward()
    assert counter.get_total_flops() / (3 * 32) == pytest.approx(
        flops_per_token(config, 32), rel=0.03
    )
