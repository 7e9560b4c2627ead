"""Fewer bits: from a model to one whose matrices are integers of 8 or 4 bits (chapter
10).

Round to nearest looks at the weights alone. GPTQ also looks at what comes into a layer:
it rounds one column after the other, and moves the columns that are still to come so
that they make up for the error, as far as inputs like those of a calibration text can
tell. The embedding stays as it is: a token reads one row of it.
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from slm2_minimal.config import ConfigError
from slm2_minimal.model.quantised import Quantisation, QuantisedLinear
from slm2_minimal.model.transformer import StableLM2

BLOCK = 128  # columns between two updates of all that are still to come
DAMPING = 0.01  # of the Hessian's mean diagonal, added to its diagonal
ROWS = 4096  # of a matrix that are rounded at a time
SECONDS = 5.0  # between two lines of progress

logger = logging.getLogger(__name__)
Grid = tuple[Float[Tensor, " N"], Float[Tensor, " N"]]  # of each row: scale, offset


@torch.no_grad()
def quantise(
    model: StableLM2,
    bits: int = 8,
    group: int | None = 32,
    *,
    symmetric: bool = True,
    method: str = "rtn",
    calibration: tuple[Tensor, ...] | None = None,
) -> StableLM2:
    """A model with the same forward, its linear layers integers of `bits` bits.

    `group` weights of a row share a scale; None: the whole row. Embedding, norms and
    biases are `model`'s own memory, and `model` is left as it is.

    Args:
        symmetric: scales only; else an offset for every group, too.
        method: `rtn` rounds to nearest, `gptq` makes up for errors on `calibration`.
        calibration: what `model` takes: ids (B, T), and where documents are packed,
        positions and document ids.

    Raises:
        ConfigError: an option that cannot be, or a group that divides no row.
    """
    settings = Quantisation(bits, group, symmetric, method)
    if (method == "gptq") != (calibration is not None):
        raise ConfigError(
            f"calibration = {'None' if calibration is None else 'given'}: gptq needs a text, and"
            " rtn has no use for one; give both or neither"
        )
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    for linear in linears.values():
        settings.groups(linear.in_features)

    # A model of the same modules on the same memory, which needs no gradients.
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    quantised = copy.deepcopy(model, shared).eval()
    progress = _Progress(len(linears))

    def replace(name: str, inputs: Tensor | None) -> QuantisedLinear:
        new = quantised_linear(linears[name], settings, inputs)
        quantised.set_submodule(name, new)
        progress.layer_done()
        return new

    if calibration is None:
        for name in linears:
            replace(name, None)
        return quantised

    # One pass over the text: a layer is quantised when its inputs arrive, which all
    # layers before it have made with their integers.
    for name in linears:
        quantised.set_submodule(name, _Waiting(partial(replace, name)))
    hidden = quantised(*calibration, head=lambda hidden, head: hidden)
    replace("lm_head", hidden)
    return quantised


class _Waiting(nn.Module):
    """In a layer's place until its inputs arrive."""

    def __init__(self, replace: Callable[[Tensor], QuantisedLinear]) -> None:
        super().__init__()
        self.replace = replace

    def forward(self, x: Tensor) -> Tensor:
        return self.replace(x)(x)


def quantised_linear(
    linear: nn.Linear, settings: Quantisation, inputs: Float[Tensor, "*B K"] | None = None
) -> QuantisedLinear:
    """One layer's: by GPTQ where `inputs` are given, else rounded to nearest."""
    weight = linear.weight.detach()
    inverse = None if inputs is None else inverse_hessian(inputs.flatten(0, -2).float())
    parts = []
    for rows in weight.split(ROWS):
        if inverse is None:
            parts.append(round_to_nearest(rows.float(), settings))
        else:
            parts.append(gptq(rows.float(), inverse, settings))

    codes, scale, offset = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantisedLinear.of(codes, scale, offset, linear.bias, settings)


def grid(weight: Float[Tensor, "N g"], settings: Quantisation) -> Grid:
    """Scale and offset of one group in each row, so that the codes reach every weight.

    Both are numbers of bf16, rounded before any code is chosen.
    """
    highest = 2 ** (settings.bits - 1) - 1
    if settings.symmetric:
        scale = weight.abs().amax(dim=1) / highest
        offset = torch.zeros_like(scale)
    else:
        low, high = weight.aminmax(dim=1)
        scale = (high - low) / (2 * highest + 1)
        offset = low + scale * (highest + 1)
    scale = torch.where(scale > 0, scale, 1.0)  # all weights of the group are alike
    return scale.bfloat16().float(), offset.bfloat16().float()


def to_codes(
    weight: Float[Tensor, "N *g"],
    scale: Float[Tensor, "*N"],
    offset: Float[Tensor, "*N"],
    bits: int,
) -> Float[Tensor, "N *g"]:
    """The codes nearest to the weights, as floating-point numbers."""
    highest = 2 ** (bits - 1) - 1
    return ((weight - offset) / scale).round_().clamp_(-highest - 1, highest)


Coded = tuple[Int8[Tensor, "N K"], Float[Tensor, "N G"], Float[Tensor, "N G"]]


def round_to_nearest(weight: Float[Tensor, "N K"], settings: Quantisation) -> Coded:
    """Codes, scales and offsets of a matrix, each weight on its own."""
    groups = settings.groups(weight.shape[1])
    grouped = weight.reshape(len(weight) * groups, -1)
    scale, offset = grid(grouped, settings)
    codes = to_codes(grouped, scale[:, None], offset[:, None], settings.bits)
    shape = (len(weight), groups)
    return codes.to(torch.int8).view_as(weight), scale.view(shape), offset.view(shape)


def inverse_hessian(inputs: Float[Tensor, "T K"]) -> Float[Tensor, "K K"]:
    """The upper Cholesky factor U of H^-1 = U' U, where H = X'X / T, damped, is the
    Hessian of a layer's squared output error in any one row of its weights.

    Row k of U says how the columns after k best make up for an error in column k.
    """
    hessian = inputs.T @ inputs / len(inputs)
    diagonal = hessian.diagonal()
    diagonal += DAMPING * diagonal.mean()
    diagonal[diagonal == 0] = 1.0  # all inputs are zero
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def gptq(
    weight: Float[Tensor, "N K"], inverse: Float[Tensor, "K K"], settings: Quantisation
) -> Coded:
    """Codes, scales and offsets of a matrix, rounded column by column (Frantar et al.,
    GPTQ, arXiv 2210.17323, algorithm 1). `inverse` is of `inverse_hessian`.
    """
    weight = weight.clone()
    columns = weight.shape[1]
    group = columns // settings.groups(columns)
    block = math.gcd(group, BLOCK)
    codes = torch.empty_like(weight, dtype=torch.int8)
    scales, offsets = [], []

    for start in range(0, columns, block):
        # A group's scale is of its weights as the errors before have moved them.
        if start % group == 0:
            scale, offset = grid(weight[:, start : start + group], settings)
            scales.append(scale)
            offsets.append(offset)

        # Round each column of the block, and move those behind it in the block.
        stop = start + block
        errors = torch.empty_like(weight[:, start:stop])
        for column in range(start, stop):
            code = to_codes(weight[:, column], scale, offset, settings.bits)
            codes[:, column] = code
            error = (weight[:, column] - (code * scale + offset)) / inverse[column, column]
            weight[:, column:stop] -= torch.outer(error, inverse[column, column:stop])
            errors[:, column - start] = error

        # All columns behind the block move at once.
        weight[:, stop:] -= errors @ inverse[start:stop, stop:]
    return codes, torch.stack(scales, dim=1), torch.stack(offsets, dim=1)


class _Progress:
    """A line now and then, where it takes long."""

    def __init__(self, layers: int) -> None:
        self.layers, self.done = layers, 0
        self.shown = time.monotonic()

    def layer_done(self) -> None:
        self.done += 1
        if time.monotonic() - self.shown > SECONDS:
            logger.info("quantise | %d of %d layers", self.done, self.layers)
            self.shown = time.monotonic()
