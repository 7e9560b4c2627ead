"""Rotary position embedding, on the first quarter of every head (report section 2).

A pair of dimensions of a query or key is turned by an angle proportional to the token's
position, so that the product of a query and a key depends on their distance alone.
Pairs are half-split as in GPT-NeoX: dimension i goes with dimension i + R/2.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary_angles(
    positions: Int[Tensor, "*B T"], rotary_dim: int, theta: float
) -> Float[Tensor, "*B T half"]:
    """The angle in radians of each position and pair: position * theta^(-2i /
    rotary_dim), i = 0 .. rotary_dim/2 - 1.

    Computed in fp32 whatever the model's dtype: within 4,096 positions a bf16 angle
    would be off by up to 8 radians.
    """
    pairs = torch.arange(0, rotary_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = theta ** (-pairs / rotary_dim)
    return positions[..., None].float() * frequencies


def apply_rotary(
    x: Float[Tensor, "B H T D"], angles: Float[Tensor, "*B T half"]
) -> Float[Tensor, "B H T D"]:
    """Turn the first 2 * angles.shape[-1] of the D dimensions; the rest pass unchanged.

    `angles` is (T, half), the same for the whole batch, or (B, T, half).
    """
    return rotate(x, angles.cos(), angles.sin())


def rotate(
    x: Float[Tensor, "B H T D"], cos: Float[Tensor, "*B T half"], sin: Float[Tensor, "*B T half"]
) -> Float[Tensor, "B H T D"]:
    """`apply_rotary` with the cosines and sines at hand: the model computes them once
    for all layers.
    """
    half = cos.shape[-1]
    if cos.dim() == 3:  # (B, T, half): the same for every head
        cos, sin = cos[:, None], sin[:, None]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([part.to(x.dtype) for part in turned] + [rest], dim=-1)
