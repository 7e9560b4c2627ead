"""Linear layers whose weights are integers of 8 or 4 bits (chapter 10).

A weight is `scale * code + offset`: a code of a few bits, and a scale for every group
of `group` neighbours in a row of the matrix; asymmetric groups have an offset, too.
Writing one token reads every weight once, so that its time is the bytes of the weights
over the memory's rate: fewer bits are faster, wherever they are multiplied as they lie.
`compiled` and `int_kernels` do that. This file holds the layer, what it is in a file,
and the plain way: make floating-point weights of some rows, and multiply by those.

`inference/quantise.py` chooses the codes.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pydantic
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from slm2_minimal.config import CheckpointError, ConfigError
from slm2_minimal.model import compiled, int_kernels

logger = logging.getLogger(__name__)
FORMAT, VERSION = "slm2", 1  # in config.json's quantization_config
METHODS = ("rtn", "gptq")
KERNEL, COMPILED = "torch's kernel", "the compiled kernel"
CHUNK = 2**21  # weights that are made floating-point at a time: 8 MB stay in the cache


@dataclass(frozen=True)
class Quantisation:
    """How weights were made integers. Raises ConfigError for what cannot be.

    `group` weights of a row share a scale; None: the whole row. `method` says how the
    codes were chosen.
    """

    bits: int = 8
    group: int | None = 32
    symmetric: bool = True
    method: str = "rtn"

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise ConfigError(f"bits = {self.bits}: must be 8 or 4; choose one of them")
        if self.group is not None and self.group < 1:
            raise ConfigError(
                f"group = {self.group}: must be at least 1; give for example 32, or none for whole"
                " rows"
            )
        if self.method not in METHODS:
            raise ConfigError(f"method = {self.method!r}: must be one of {', '.join(METHODS)}")

    def groups(self, columns: int) -> int:
        """How many groups a row of so many columns has. Raises ConfigError where they
        do not divide.
        """
        size = self.group or columns
        if columns % size or columns * self.bits % 8:
            raise ConfigError(
                f"group = {self.group}: does not divide the model's matrices of {columns} columns;"
                " give a divisor, or none for whole rows"
            )
        return columns // size

    @property
    def bits_per_weight(self) -> float:
        """With scales and offsets of 16 bits; those of whole rows are left out."""
        numbers = 1 if self.symmetric else 2
        return self.bits + (16 * numbers / self.group if self.group else 0)

    def to_json(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {"quant_method": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any, where: object) -> "Quantisation":
        """Of a folder's `quantization_config`. Raises CheckpointError for those of
        others.
        """
        kind = content.get("quant_method") if isinstance(content, dict) else content
        if kind != FORMAT or content.get("version") != VERSION:
            raise CheckpointError(
                f"quantization_config.quant_method = {kind!r} in {where}: not in the format"
                f" {FORMAT!r} {VERSION}; quantise the original model with slm2 quantise"
            )
        values = {name: value for name, value in content.items() if name in cls.__annotations__}
        try:
            return pydantic.TypeAdapter(cls).validate_python(values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, ("quantization_config", *first["loc"])))
            message = f"{where}: {name} cannot be read ({first['msg']}); quantise it again"
            raise CheckpointError(message) from None


def pack_nibbles(codes: Int8[Tensor, "N K"]) -> UInt8[Tensor, "N K_half"]:
    """Codes from -8 to 7, two a byte, each plus 8: the first in the low four bits."""
    shifted = (codes + 8).view(torch.uint8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def unpack_nibbles(packed: UInt8[Tensor, "N K_half"]) -> Int8[Tensor, "N K"]:
    """`pack_nibbles` undone."""
    pairs = torch.stack([packed & 15, packed >> 4], dim=-1)
    return pairs.flatten(-2).view(torch.int8) - 8


class QuantisedLinear(nn.Module):
    """An `nn.Linear` with integer weights. Its state dict has `codes` (int8, or two a
    byte as `pack_nibbles` has them), `scale` and `offset` in bf16, one of each a group,
    and `bias`.

    What comes out has the format of what goes in.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, settings: Quantisation, bias: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.settings = settings
        groups = settings.groups(in_features)
        kind = torch.int8 if settings.bits == 8 else torch.uint8
        scale = torch.empty(out_features, groups, dtype=torch.bfloat16)
        offset = None if settings.symmetric else torch.empty_like(scale)
        width = in_features * settings.bits // 8
        self.register_buffer("codes", torch.empty(out_features, width, dtype=kind))
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.arranged = False  # whether the codes lie as a kernel wants them
        self.tiled_scales: Tensor | None = None  # the 4-bit kernel's, of which ours are views
        self.kernel_rows = -1  # up to how many rows of x a kernel is faster; -1: not known
        self.kernel = KERNEL  # which one

    @classmethod
    def of(
        cls,
        codes: Int8[Tensor, "N K"],
        scale: Float[Tensor, "N G"],
        offset: Float[Tensor, "N G"],
        bias: Tensor | None,
        settings: Quantisation,
    ) -> "QuantisedLinear":
        """Made of codes from -128 or -8 on."""
        rows, columns = codes.shape
        with torch.device("meta"):
            layer = cls(columns, rows, settings, bias is not None)
        layer.codes = codes if settings.bits == 8 else pack_nibbles(codes)
        layer.scale = scale.bfloat16()
        layer.offset = None if settings.symmetric else offset.bfloat16()
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return layer

    def forward(self, x: Float[Tensor, "*B K"]) -> Float[Tensor, "*B N"]:
        rows = x.reshape(-1, self.in_features)
        if self.kernel_rows < 0:
            self.choose(rows)
        if len(rows) > self.kernel_rows:
            y = self.plain_product(rows)
        elif self.kernel == COMPILED:
            y = self.compiled_product(rows)
        else:
            y = self.kernel_product(rows)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    # Three ways to multiply

    def plain_product(self, x: Float[Tensor, "M K"]) -> Float[Tensor, "M N"]:
        """x W' by floating-point weights, made for some rows of W at a time."""
        step = max(CHUNK // self.in_features // int_kernels.BLOCK, 1) * int_kernels.BLOCK
        starts = range(0, self.out_features, step)
        parts = [F.linear(x, self.weights(start, start + step, x.dtype)) for start in starts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def kernel_product(self, x: Float[Tensor, "M K"]) -> Float[Tensor, "M N"]:
        """x W' by torch's kernel, which reads the integers."""
        self.arrange()
        rounded = x.bfloat16().contiguous()
        if self.tiled_scales is None:
            codes = self.codes.view(self.scale.shape[1], self.out_features, -1)
            return int_kernels.product_8(rounded, codes, self.scale, self.offset).to(x.dtype)
        return int_kernels.product_4(rounded, self.codes, self.tiled_scales).to(x.dtype)

    def compiled_product(self, x: Float[Tensor, "M K"]) -> Float[Tensor, "M N"]:
        """x W' by the compiled kernel, which takes the codes as a file has them."""
        self.restore()
        return compiled.product_of_codes(x, self.codes, self.scale, self.offset).to(x.dtype)

    def weights(
        self, start: int = 0, stop: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "N K"]:
        """The rows from `start` to `stop` of the matrix that these integers stand for.

        Where codes are arranged, both are multiples of BLOCK, or the end.
        """
        rows = slice(start, stop)
        groups = self.scale.shape[1]
        if self.settings.bits == 8 and self.arranged:
            codes = self.codes.view(groups, self.out_features, -1)[:, rows].transpose(0, 1)
        elif self.settings.bits == 8:
            codes = self.codes[rows]
        elif self.arranged:
            codes = int_kernels.from_blocks(self.codes[rows]).view(torch.int8) - 8
        else:
            codes = unpack_nibbles(self.codes[rows])

        grouped = codes.reshape(len(self.scale[rows]), groups, -1).to(dtype)
        grouped = grouped.mul_(self.scale[rows, :, None].to(dtype))
        if self.offset is not None:
            grouped = grouped.add_(self.offset[rows, :, None].to(dtype))
        return grouped.flatten(1)

    # Which one, and how the codes lie

    def choose(self, x: Float[Tensor, "M K"]) -> None:
        """Decide which kernel multiplies up to how many rows of activations. It is
        measured on the first layer of its kind, and said.
        """
        kernels = self.kernels() if x.device.type == "cpu" else {}
        settings = self.settings
        kind = (settings.bits, settings.group, x.dtype, x.device.type, *kernels)
        if kind not in _measured and x.device.type != "cpu":
            logger.info("weights of %d bits: no kernel on %s, made floating-point for each"
                        " product", settings.bits, x.device.type)  # fmt: skip
        if kind not in _measured:
            _measured[kind] = self.measure(kernels, x[:1]) if kernels else (KERNEL, 0)
        self.kernel, self.kernel_rows = _measured[kind]

    def kernels(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Those of the CPU that can multiply such weights, by name."""
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        groups = self.scale.shape[1]
        group = self.in_features // groups
        if int_kernels.takes(self.settings.bits, group, self.out_features):
            found[KERNEL] = self.kernel_product
        if compiled.takes(self.in_features, groups, self.out_features):
            found[COMPILED] = self.compiled_product
        return found

    def measure(
        self, kernels: dict[str, Callable[[Tensor], Tensor]], x: Float[Tensor, "1 K"]
    ) -> tuple[str, int]:
        """(the fastest kernel, up to how many rows it is faster than the plain way)."""
        times = {name: int_kernels.milliseconds(call, x) for name, call in kernels.items()}
        fastest = min(times, key=lambda name: times[name])
        crossing = int_kernels.crossing(kernels[fastest], self.plain_product, x)
        logger.info(
            "weights of %d bits, %d x %d: %s, floating-point weights %.2f; %s is used up to %s"
            " rows",
            self.settings.bits, self.out_features, self.in_features,
            ", ".join(f"{name} takes {time:.2f} ms a row" for name, time in times.items()),
            crossing.plain, fastest,
            f"{crossing.rows:,}" if crossing.rows < 2**31 else "any",
        )  # fmt: skip
        return fastest, crossing.rows

    def arrange(self) -> None:
        """Lay the codes as the kernel wants them; they take no more memory."""
        if self.arranged:
            return
        self.arranged = True
        groups = self.scale.shape[1]
        if self.settings.bits == 8:
            self.codes = int_kernels.by_groups(self.codes, groups).view_as(self.codes)
            return

        # some rows at a time, beside which only the result is held
        blocks = torch.empty_like(self.codes)
        for part, out in zip(
            self.codes.split(int_kernels.ROWS), blocks.split(int_kernels.ROWS), strict=True
        ):
            nibbles = (unpack_nibbles(part) + 8).view(torch.uint8)
            out.copy_(int_kernels.to_blocks(nibbles))
        self.codes = blocks
        offset = torch.zeros_like(self.scale) if self.offset is None else self.offset
        self.tiled_scales = torch.stack([self.scale.T, offset.T], dim=-1).contiguous()
        self.scale = self.tiled_scales[..., 0].T
        if self.offset is not None:
            self.offset = self.tiled_scales[..., 1].T

    def restore(self) -> None:
        """`arrange` undone: what a file holds, and what another device understands."""
        if not self.arranged:
            return
        self.arranged = False
        self.tiled_scales = None
        if self.settings.bits == 8:
            codes = self.codes.view(self.scale.shape[1], self.out_features, -1)
            self.codes = codes.transpose(0, 1).reshape(self.codes.shape)
        else:
            parts = self.codes.split(int_kernels.ROWS)
            codes_of = (int_kernels.from_blocks(part).view(torch.int8) - 8 for part in parts)
            self.codes = torch.cat([pack_nibbles(part) for part in codes_of])
        self.scale = self.scale.contiguous()
        self.offset = None if self.offset is None else self.offset.contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantisedLinear":
        """Another device or format; scales stay bf16, which is what was rounded for."""
        self.restore()
        self.kernel_rows = -1
        super()._apply(fn, recurse)
        self.scale = self.scale.bfloat16()
        self.offset = None if self.offset is None else self.offset.bfloat16()
        return self

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self.restore()
        super()._save_to_state_dict(*arguments)


_measured: dict[tuple[object, ...], tuple[str, int]] = {}  # the kernel, up to which rows


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, QuantisedLinear]]:
    """The layers of a quantised model by name; none of another."""
    for name, part in model.named_modules():
        if isinstance(part, QuantisedLinear):
            yield name, part


def replace_linears(model: nn.Module, settings: Quantisation) -> None:
    """Make every linear layer one with integer weights, which are still to be read."""
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.Linear):
            new = QuantisedLinear(
                part.in_features, part.out_features, settings, part.bias is not None
            )
            model.set_submodule(name, new)
