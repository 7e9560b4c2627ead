"""PLACE: say what this is."""

from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from slm2_minimal.config import DataError, ModelConfig

if (
    TYPE_CHECKING
):  # imported where it is used: FlexAttention brings torch's compiler along, which takes seconds
    from torch.nn.attention.flex_attention import BlockMask


Mask: TypeAlias = "Bool[Tensor, 'B 1 T S'] | BlockMask | None"  # None: causal


def document_mask(document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """True where query t may see key s: s <= t, and both of the same document."""
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same.tril()


def document_blocks(document_ids: Int[Tensor, "B T"]) -> "BlockMask":
    """`document_mask` by blocks of 128 x 128 pairs: which of them hold any pair that
    may meet, and the rule for those that hold others too.

    A kernel that goes by it leaves out whole blocks, of other documents and of later
    tokens, and reads no mask of T x T.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def may_see(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_ids[row, query] == document_ids[row, key]) & (key <= query)

    rows, length = document_ids.shape
    return create_block_mask(may_see, rows, None, length, length, device=document_ids.device)


def packed_mask(document_ids: Int[Tensor, "B T"]) -> Mask:
    """Who sees whom in packed rows, in the form for their device: blocks on a GPU,
    where a dense mask rules out the flash kernel.
    """
    return document_blocks(document_ids) if document_ids.is_cuda else document_mask(document_ids)


def cached_mask(new: int, length: int, device: torch.device) -> Bool[Tensor, "1 1 T S"] | None:
    """Who sees whom when `new` tokens follow `length` cached ones; None where plain
    causality or no mask says it already.
    """
    if length == 0 or new == 1:
        return None
    return torch.ones(new, length + new, dtype=torch.bool, device=device).tril(diagonal=length)[
        None, None
    ]


def check_context(length: int, config: ModelConfig) -> None:
    """Raise DataError for a sequence longer than the context the rotary angles were
    trained for.
    """
    if length > config.max_position_embeddings:
        raise DataError(
            f"input_ids = {length} tokens: longer than the context, max_position_embeddings ="
            f" {config.max_position_embeddings}; shorten the input"
        )
