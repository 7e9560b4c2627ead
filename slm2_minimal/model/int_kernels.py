"""torch's CPU products with integer weights, and from where on they are worth it.

The 8-bit kernel knows one scale a row: groups are multiplied one by one and added. The
4-bit kernel knows groups, and wants its codes in blocks that fit the processor's
registers. Both are fast for activations in bf16 only, so these are rounded to it. Few
rows of activations are limited by reading the weights: there the kernels win. With many
rows, multiplying floating-point weights that were made once for all of them does.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float, Int8, UInt8
from torch import Tensor

GROUPS = (32, 64, 128, 256)  # that the 4-bit kernel is made for
BLOCK = 64  # rows: every block of codes divides it
ROWS = 4096  # of a matrix that are rearranged at a time
MANY = 64  # rows of activations, where a kernel's time is measured beside one row's


def by_groups(codes: Int8[Tensor, "N K"], groups: int) -> Int8[Tensor, "G N g"]:
    """What `product_8` takes; whole rows are not copied."""
    return codes.view(len(codes), groups, -1).transpose(0, 1).contiguous()


def product_8(
    x: BFloat16[Tensor, "M K"],
    codes: Int8[Tensor, "G N g"],
    scale: BFloat16[Tensor, "N G"],
    offset: BFloat16[Tensor, "N G"] | None,
) -> Float[Tensor, "M N"]:
    """x W' in fp32, group by group."""
    grouped = x.view(len(x), len(codes), -1).transpose(0, 1).contiguous()
    scales = scale.T.contiguous()
    first, *rest = zip(grouped, codes, scales, strict=True)
    out = torch._weight_int8pack_mm(*first).float()
    for part in rest:
        out += torch._weight_int8pack_mm(*part)
    return out if offset is None else out + grouped.float().sum(-1).T @ offset.float().T


def to_blocks(nibbles: UInt8[Tensor, "N K"]) -> UInt8[Tensor, "N K_half"]:
    """Codes from 0 to 15 as the 4-bit kernel of this processor has them."""
    parts = nibbles.split(ROWS)
    return torch.cat(
        [torch.ops.aten._convert_weight_to_int4pack_for_cpu(part.int(), 1) for part in parts]
    )


def from_blocks(blocks: UInt8[Tensor, "N K_half"]) -> UInt8[Tensor, "N K"]:
    """`to_blocks` undone, for whole blocks of rows."""
    rows, half = blocks.shape
    size = block_size()
    pairs = blocks.view(rows // size, half * 2, size // 2)
    nibbles = torch.cat([pairs & 15, pairs >> 4], dim=2)
    return nibbles.transpose(1, 2).reshape(rows, half * 2)


def block_size() -> int:
    """How many rows of a matrix lie together in the kernel's codes."""
    return 64 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 32


def product_4(
    x: BFloat16[Tensor, "M K"], blocks: UInt8[Tensor, "N K_half"], scales: BFloat16[Tensor, "G N 2"]
) -> BFloat16[Tensor, "M N"]:
    """x W', by scale and offset of every group."""
    group = x.shape[1] // len(scales)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, blocks, group, scales)


def takes(bits: int, group: int, rows: int) -> bool:
    """Whether there is a kernel for a matrix of so many rows."""
    if bits == 8:
        return True
    if group not in GROUPS or rows % BLOCK:
        return False
    # how the codes lie is the kernel's own affair: see whether we read it right
    pattern = (torch.arange(BLOCK * 32) * 7 % 16).to(torch.uint8).view(BLOCK, 32)
    return torch.equal(from_blocks(to_blocks(pattern)), pattern)


class Crossing(NamedTuple):
    """Up to how many rows of activations a kernel is the faster way (0: never), and
    both ways' milliseconds for one row.
    """

    rows: int
    kernel: float
    plain: float


def crossing(
    kernel: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], one_row: Tensor
) -> Crossing:
    """Measured now, for one row and for MANY."""
    many = one_row.expand(MANY, -1).contiguous()
    kernel_one, plain_one = (milliseconds(way, one_row) for way in (kernel, plain))
    kernel_many, plain_many = (milliseconds(way, many) for way in (kernel, plain))

    # where a line through the two differences is zero
    ahead = plain_one - kernel_one
    falls = ahead - (plain_many - kernel_many)
    if ahead <= 0:
        rows = 0
    elif falls <= 0:
        rows = 2**31
    else:
        rows = 1 + int((MANY - 1) * ahead / falls)
    return Crossing(rows, kernel_one, plain_one)


def milliseconds(call: Callable[[Tensor], Tensor], x: Tensor, repeats: int = 3) -> float:
    """Of the fastest of some calls, after one to warm up."""
    call(x)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call(x)
        best = min(best, time.perf_counter() - start)
    return best * 1e3
