"""Models for tests: as small as can be, and one with nothing at its first value."""

import torch

from slm2_minimal.config import ModelConfig
from slm2_minimal.model.transformer import StableLM2

SMALL = ModelConfig(
    vocab_size=7,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=16,
    bos_token_id=0,
    eos_token_id=0,
)
# The same for the tiny tokenizer.
TINY = SMALL.replace(
    vocab_size=1024, hidden_size=32, intermediate_size=64, max_position_embeddings=48
)


def randomised(config: ModelConfig, seed: int = 0) -> StableLM2:
    """A model with every parameter drawn at random, biases and norms too, so that
    nothing cancels and logits are of a few units.
    """
    generator = torch.Generator().manual_seed(seed)
    model = StableLM2(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight") or "layernorm.weight" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
    return model
