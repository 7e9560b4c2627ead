"""A model that is as small as one can be, for tests that need any."""

from slm2_minimal.config import ModelConfig

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
