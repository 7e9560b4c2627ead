"""A model whose parameters are all random, small enough to be run often."""

import pytest
import torch

from slm2_minimal.config import ModelConfig
from slm2_minimal.model.transformer import StableLM2
from tests.models import TINY

SMALL = TINY.replace(num_hidden_layers=2)


def random_model(config: ModelConfig, std: float = 0.3) -> StableLM2:
    model = StableLM2(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std, generator=generator)
    return model


@pytest.fixture(scope="session")
def model() -> StableLM2:
    return random_model(SMALL)
