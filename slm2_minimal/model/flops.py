"""What a token costs: the count that every share of a peak (MFU) is taken of."""

from slm2_minimal.config import ModelConfig


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Floating-point operations to train on one token: 6 (N - V C) + 12 L C T.

    Every weight that multiplies costs 2 forward and 4 backward. The embedding's V x C
    table is looked up, not multiplied, and left out. Attention adds 2 products of T x D
    per head, 12 L C T in all, counted in full although the causal half could be
    skipped, as the field does. Norms, rotary and softmax are left out: less than 1%.
    With T = 4096 the 1.6B needs 1.105e10 (derived).
    """
    weights = config.num_parameters(embeddings=False)
    queries = config.num_attention_heads * config.head_dim
    return 6 * weights + 12 * config.num_hidden_layers * queries * seq_len
