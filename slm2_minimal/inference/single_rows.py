"""Linear layers for writing: what multiplies one row of activations fast."""

import logging

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from slm2_minimal.model import compiled
from slm2_minimal.model.int_kernels import milliseconds

logger = logging.getLogger(__name__)


class SingleRowLinear(nn.Linear):
    """An `nn.Linear` that multiplies a single row by the compiled product, where no
    gradient is wanted and nothing else converts formats.
    """

    def forward(self, x: Float[Tensor, "*B K"]) -> Float[Tensor, "*B N"]:
        single = x.numel() == self.in_features and not torch.is_grad_enabled()
        plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not (single and plain and x.dtype == self.weight.dtype in compiled.NAMES):
            return super().forward(x)
        y = compiled.product(x.reshape(1, -1), self.weight)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def speed_up(model: nn.Module) -> None:
    """Make a model's large linear layers such ones, where this machine can compile the
    product and is faster with it; that is measured, and said.

    It is for writing on a CPU, and for a model that is not distributed or compiled.
    """
    layers = {
        name: part
        for name, part in model.named_modules()
        if type(part) is nn.Linear and part.weight.numel() >= compiled.LARGE
    }
    if not layers:
        return
    weight = next(iter(layers.values())).weight.detach()
    if weight.device.type != "cpu" or weight.dtype not in compiled.NAMES:
        return
    if compiled.library() is None:
        return

    row = torch.ones(1, weight.shape[1], dtype=weight.dtype)
    own = milliseconds(lambda x: compiled.product(x, weight), row)
    theirs = milliseconds(lambda x: F.linear(x, weight), row)
    used = own < theirs
    logger.info(
        "weights of %d bits, %d x %d: the compiled product takes %.2f ms a row, torch's %.2f; %s"
        " is used",
        8 * weight.itemsize, *weight.shape, own, theirs, "the first" if used else "the second",
    )  # fmt: skip
    for name, part in layers.items() if used else ():
        with torch.device("meta"):
            new = SingleRowLinear(part.in_features, part.out_features, part.bias is not None)
        new.weight, new.bias = part.weight, part.bias
        model.set_submodule(name, new)
