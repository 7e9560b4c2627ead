"""Weights of 16 bits that compute in fp32.

What a model's weights cost is told apart from what 16-bit activations cost, in the
memory of 16 bits: each weight is widened for its own product, some rows at a time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CHUNK = 2**21  # weights that are widened at a time: 8 MB stay in the cache


class Fp32Activations(TorchFunctionMode):
    """A context in which every model computes in fp32, whatever holds its weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is F.linear:
            return _linear(*args, **named)
        if func is F.layer_norm:
            args = [_widened(each) for each in args]
            named = {name: _widened(each) for name, each in named.items()}
        out = func(*args, **named)
        return out.float() if func is F.embedding else out


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.dtype == torch.float32:
        return F.linear(input, weight, bias)
    parts = weight.split(max(1, CHUNK // weight.shape[1]))
    out = torch.cat([F.linear(input, rows.float()) for rows in parts], dim=-1)
    return out if bias is None else out + bias.float()


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value
