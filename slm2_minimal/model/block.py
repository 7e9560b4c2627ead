"""The pre-norm block: attention and SwiGLU, each read from a normalised copy of the
residual stream and added back (report section 2).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from slm2_minimal.config import ModelConfig
from slm2_minimal.model.attention import Attention, Rotation
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.masks import Mask


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(channels, inner, bias=False)
        self.up_proj = nn.Linear(channels, inner, bias=False)
        self.down_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): sequential, not parallel."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        channels, eps, biased = config.hidden_size, config.layer_norm_eps, config.norm_bias
        self.input_layernorm = nn.LayerNorm(channels, eps=eps, bias=biased)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(channels, eps=eps, bias=biased)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rotation: Rotation,
        mask: Mask = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))
