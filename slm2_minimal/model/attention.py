"""Causal self-attention with biases on q, k and v only (report section 2.3), a readable reference beside it, and the key-value cache.

Attention is the one place where tokens meet. In a packed sequence they meet only inside their own document: `document_mask` says who
may look at whom, and everything else in the model acts on each token alone.
"""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from slm2_minimal.config import DataError, ModelConfig
from slm2_minimal.model.rope import rotate

if TYPE_CHECKING:  # imported where it is used: FlexAttention brings torch's compiler along, which takes seconds
    from torch.nn.attention.flex_attention import BlockMask

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, half) or (B, T, half)
Mask: TypeAlias = "Bool[Tensor, 'B 1 T S'] | BlockMask | None"  # None: causal


def document_mask(document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """True where query t may see key s: s <= t, and both of the same document."""
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same.tril()


def document_blocks(document_ids: Int[Tensor, "B T"]) -> "BlockMask":
    """`document_mask` by blocks of 128 x 128 pairs: which of them hold any pair that may meet, and the rule for those that hold others too.

    A kernel that goes by it leaves out whole blocks, of other documents and of later tokens, and reads no mask of T x T.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def may_see(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_ids[row, query] == document_ids[row, key]) & (key <= query)

    rows, length = document_ids.shape
    return create_block_mask(may_see, rows, None, length, length, device=document_ids.device)


def packed_mask(document_ids: Int[Tensor, "B T"]) -> Mask:
    """Who sees whom in packed rows, in the form for their device: blocks on a GPU, where a dense mask rules out the flash kernel."""
    return document_blocks(document_ids) if document_ids.is_cuda else document_mask(document_ids)


def reference_attention(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H S D"], v: Float[Tensor, "B H S D"], mask: Bool[Tensor, "*B T S"]
) -> Float[Tensor, "B H T D"]:
    """softmax(q k' / sqrt(D)) v, written out. For reading and for tests: it holds all T x S scores in memory."""
    scores = einsum(q, k, "b h t d, b h s d -> b h t s") / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return einsum(weights, v, "b h t s, b h s d -> b h t d")


def attend(q: Float[Tensor, "B H T D"], k: Float[Tensor, "B K S D"], v: Float[Tensor, "B K S D"], mask: Mask) -> Float[Tensor, "B H T D"]:
    """`reference_attention` by the kernel that `mask` calls for; without a mask, causal. Each of K heads serves H / K query heads."""
    grouped = q.shape[1] != k.shape[1]
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=grouped)
    from torch.nn.attention.flex_attention import flex_attention

    # As separate operations it holds all T x T scores: it is compiled with what is being compiled around it, or else by itself.
    kernel: Any = flex_attention if torch.compiler.is_compiling() else _compiled(flex_attention)
    return kernel(q, k, v, block_mask=mask, enable_gqa=grouped)


_compiled = functools.cache(torch.compile)  # once for all layers


@dataclass
class KeyValueCache:
    """The keys and values of the tokens already read, one pair of (B, H, length, D) per layer.

    Memory: 2 * layers * hidden_size * bytes per token with as many key as query heads; 196,608 bytes for the 1.6B in 16 bits.
    """

    layers: list[tuple[Tensor, Tensor] | None]

    @classmethod
    def empty(cls, config: ModelConfig) -> "KeyValueCache":
        """A cache that has read nothing."""
        return cls([None] * config.num_hidden_layers)

    @property
    def length(self) -> int:
        """How many tokens have been read."""
        return 0 if self.layers[0] is None else self.layers[0][0].shape[2]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values and return all of them."""
        old = self.layers[layer]
        if old is not None:
            k, v = torch.cat([old[0], k], dim=2), torch.cat([old[1], v], dim=2)
        self.layers[layer] = (k, v)
        return k, v


class Attention(nn.Module):
    """Multi-head attention; with fewer key-value than query heads, each of the former serves a group of the latter."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.use_qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.use_qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.use_qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rotation: Rotation,
        mask: Mask = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Without a mask, attention is causal over the T tokens and whatever the cache holds before them."""
        q, k, v = (rearrange(proj(x), "b t (h d) -> b h t d", d=self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        return self.o_proj(rearrange(attend(q, k, v, mask), "b h t d -> b t (h d)"))


def cached_mask(new: int, length: int, device: torch.device) -> Bool[Tensor, "1 1 T S"] | None:
    """Who sees whom when `new` tokens follow `length` cached ones; None where plain causality or no mask says it already."""
    if length == 0 or new == 1:
        return None
    return torch.ones(new, length + new, dtype=torch.bool, device=device).tril(diagonal=length)[None, None]


def check_context(length: int, config: ModelConfig) -> None:
    """Raise DataError for a sequence longer than the context the rotary angles were trained for."""
    if length > config.max_position_embeddings:
        raise DataError(
            f"input_ids = {length} tokens: longer than the context, max_position_embeddings = {config.max_position_embeddings}; "
            "shorten the input"
        )
