"""Causal self-attention with biases on q, k and v only (report section 2), and a
readable reference beside it.

Attention is the one place where tokens meet: everything else in the model acts on each
token alone. `masks` says who may look at whom.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from slm2_minimal.config import ModelConfig
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.masks import Mask
from slm2_minimal.model.rope import rotate

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, half) or (B, T, half)


def reference_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    mask: Bool[Tensor, "*B T S"],
) -> Float[Tensor, "B H T D"]:
    """softmax(q k' / sqrt(D)) v, written out. For reading and for tests: it holds all
    T x S scores in memory.
    """
    scores = einsum(q, k, "b h t d, b h s d -> b h t s") / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return einsum(weights, v, "b h t s, b h s d -> b h t d")


def attend(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: Mask,
) -> Float[Tensor, "B H T D"]:
    """`reference_attention` by the kernel that `mask` calls for; without a mask,
    causal. Each of K heads serves H / K query heads.
    """
    grouped = q.shape[1] != k.shape[1]
    if mask is None or isinstance(mask, Tensor):
        causal = mask is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
    from torch.nn.attention.flex_attention import flex_attention

    # As separate operations it holds all T x T scores: it is compiled with what is
    # being compiled around it, or else by itself.
    kernel: Any = flex_attention if torch.compiler.is_compiling() else _compiled(flex_attention)
    return kernel(q, k, v, block_mask=mask, enable_gqa=grouped)


_compiled = functools.cache(torch.compile)  # once for all layers


class Attention(nn.Module):
    """Multi-head attention; with fewer key-value than query heads, each of the former
    serves a group of the latter.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        channels, biased = config.hidden_size, config.use_qkv_bias
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(channels, queries, bias=biased)
        self.k_proj = nn.Linear(channels, keys, bias=biased)
        self.v_proj = nn.Linear(channels, keys, bias=biased)
        self.o_proj = nn.Linear(queries, channels, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rotation: Rotation,
        mask: Mask = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Without a mask, attention is causal over the T tokens and whatever the cache
        holds before them.
        """
        q, k, v = (
            rearrange(proj(x), "b t (h d) -> b h t d", d=self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        return self.o_proj(rearrange(attend(q, k, v, mask), "b h t d -> b t (h d)"))
