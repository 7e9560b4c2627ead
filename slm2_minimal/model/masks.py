"""Who may see whom: the masks of packed documents and of cached tokens.

In a packed sequence tokens meet only inside their own document. A mask is dense flags
on a CPU, and blocks of 128 x 128 pairs on a GPU.
"""

from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:  # importing it takes seconds: it brings torch's compiler along
    from torch.nn.attention.flex_attention import BlockMask

Mask: TypeAlias = "Bool[Tensor, 'B 1 T S'] | BlockMask | None"  # None: causal


def document_mask(document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """True where query t may see key s: s <= t, and both of the same document."""
    same_document = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same_document.tril()


def document_blocks(document_ids: Int[Tensor, "B T"]) -> "BlockMask":
    """`document_mask` by blocks: which of them hold a pair that may meet, and the rule
    for blocks that hold other pairs too.

    A kernel leaves out whole blocks, of other documents and of later tokens. It reads
    no mask of T x T.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def may_see(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_ids[row, query] == document_ids[row, key]) & (key <= query)

    batch, length = document_ids.shape
    return create_block_mask(may_see, batch, None, length, length, device=document_ids.device)


def packed_mask(document_ids: Int[Tensor, "B T"]) -> Mask:
    """The mask of packed documents in the form for their device: blocks on a GPU, where
    a dense mask rules out the flash kernel.
    """
    return document_blocks(document_ids) if document_ids.is_cuda else document_mask(document_ids)


def cached_mask(
    new: int, length: int, device: torch.device, starts: Int[Tensor, " B"] | None = None
) -> Bool[Tensor, "#B 1 T S"] | None:
    """The mask of `new` tokens that follow `length` cached ones; None where plain
    causality or no mask says it already. A row sees nothing before its start.
    """
    if starts is None and (length == 0 or new == 1):
        return None
    columns = torch.arange(length + new, device=device)
    causal = columns <= columns[length:, None]
    if starts is None:
        return causal[None, None]
    return (causal & (columns >= starts[:, None, None]))[:, None]
