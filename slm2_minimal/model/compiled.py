"""Products of one row of activations, compiled on the machine that runs them.

The row of one token meets every weight once, so that reading them is all that should
take time. torch's products often stay far below the memory's rate with one row;
`products.cpp` comes near it. The machine's own compiler builds it in a second; where
there is none (or a processor without AVX2) torch's are used.
"""

import ctypes
import functools
import logging
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

logger = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("products.cpp")
# The last four let sums be reordered, as vectors need it; infinities and NaN stay.
FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
)
LARGE = 2**21  # weights from which on a matrix is worth a second of compiling
NAMES = {torch.float32: "product_32", torch.bfloat16: "product_16"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """`products.cpp`, built once a process; None where it cannot be, which is said."""
    compiler = os.environ.get("CXX", "c++")
    logger.info("compiling the products of one row with %s", compiler)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "products.so"
        words = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
        try:
            subprocess.run(words, check=True, capture_output=True, text=True)
            found = ctypes.CDLL(str(built))
        except (OSError, subprocess.CalledProcessError) as error:
            logger.info("it cannot (%s): slower products of torch's are used", error)
            return None
    # pointers, then numbers
    for name, count in {"product_32": 3, "product_16": 3, "product_of_codes": 5}.items():
        function = getattr(found, name)
        function.argtypes = [ctypes.c_void_p] * count + [ctypes.c_long] * count
    return found


def takes(columns: int, groups: int, rows: int) -> bool:
    """Whether integers in so many groups a row can be multiplied here, and it pays."""
    fits = columns % 64 == 0 and columns // groups % 32 == 0
    return fits and rows * columns >= LARGE and library() is not None


def product(x: Float[Tensor, "M K"], weight: Float[Tensor, "N K"]) -> Float[Tensor, "M N"]:
    """x W' in fp32, of numbers of one kind, in `NAMES`."""
    assert x.dtype == weight.dtype
    x, y = x.contiguous(), torch.empty(len(x), len(weight), dtype=torch.float32)
    call(NAMES[weight.dtype], weight, x, y, *x.shape, len(weight))
    return y


def product_of_codes(
    x: Float[Tensor, "M K"],
    codes: Int8[Tensor, "N K"] | UInt8[Tensor, "N K_half"],
    scale: Float[Tensor, "N G"],
    offset: Float[Tensor, "N G"] | None,
) -> Float[Tensor, "M N"]:
    """x W' in fp32 of codes as a file has them, scales and offsets in bf16.

    Activations are rounded to integers of twice as many bits as the weights, each 32 of
    them with a scale: to about 1 / 65,000 or 1 / 250 of the largest.
    """
    rows, groups = scale.shape
    assert x.shape[1] % 64 == 0
    assert x.shape[1] // groups % 32 == 0
    bits = 8 if codes.dtype == torch.int8 else 4
    x, y = x.float().contiguous(), torch.empty(len(x), rows, dtype=torch.float32)
    call("product_of_codes", codes, scale, offset, x, y, *x.shape, rows, groups, bits)
    return y


def call(name: str, *arguments: Tensor | int | None) -> None:
    """A function of `products.cpp`; tensors are pointers there, and lie contiguous."""
    found = library()
    assert found is not None
    words = []
    for each in arguments:
        assert not isinstance(each, Tensor) or each.is_contiguous()
        words.append(each.data_ptr() if isinstance(each, Tensor) else each)
    getattr(found, name)(*words)
