"""Which device and number format a run uses, and how fast this machine multiplies."""

import contextlib
import functools
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slm2_minimal.config import ConfigError

# Dense 16-bit matrix peaks in FLOP/s, from the makers' data sheets, without sparsity.
# Other devices are measured.
DATA_SHEET_PEAK = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12}
# Where a container's limit stands, in versions 2 and 1 of control groups.
CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
PROBE_SECONDS = 0.5  # after which nothing is timed once more


def pick_device(name: str) -> torch.device:
    """The device of `train.device`; `auto` is CUDA where there is one. Raises
    ConfigError for a device that is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device = 'cuda': no CUDA device is visible to torch; use 'cpu', or install a"
            " CUDA build of torch"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of `train.dtype`.

    `auto` is bf16 where this machine multiplies at least half again as fast in it as in
    fp32, measured. CPU cores with AMX do; older ones emulate bf16 and are slower.
    """
    if name == "auto":
        bf16, fp32 = (matmul_flops(device, dtype) for dtype in (torch.bfloat16, torch.float32))
        return torch.bfloat16 if bf16 > 1.5 * fp32 else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Mixed precision: parameters stay fp32, matrix products run in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that the clock measures work, not submission."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@functools.cache
def matmul_flops(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a product of two matrices of size x size, 2 size^3 operations, measured
    now.
    """
    size = size or (4096 if device.type == "cuda" else 1024)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, device)


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes at best, of up to seven times.

    Where it takes long, as bf16 does on a CPU that emulates it, no more than
    PROBE_SECONDS are spent.
    """
    best = float("inf")
    begin = time.perf_counter()
    for _ in range(7):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        now = time.perf_counter()
        best = min(best, now - start)
        if now - begin > PROBE_SECONDS:
            break
    return best


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s that a share of peak is taken of: the data sheet's for known GPUs in
    bf16, otherwise what is measured.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for key, flops in DATA_SHEET_PEAK.items():
            if key in name:
                return flops
    return matmul_flops(device, dtype)


def require_memory(needed: float, device: torch.device, field: str, remedy: str) -> None:
    """Raise ConfigError where a device can never hold so many bytes.

    `field`, with its value, begins the message, and `remedy` ends it.
    """
    there = total_memory(device)
    if needed > there:
        raise ConfigError(
            f"{field}: needs {needed / 1e9:,.1f} GB at least, and this machine's {device.type} has"
            f" {there / 1e9:,.1f} in all; {remedy}"
        )


def total_memory(device: torch.device) -> float:
    """The bytes of a device: a GPU's, or a machine's with its swap, but no more than a
    container may have; infinite where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    sizes = {
        name: 1024 * int(size.split()[0]) for name, _, size in (x.partition(":") for x in lines)
    }
    total, swap = sizes["MemTotal"], sizes["SwapTotal"]
    for group in CONTROL_GROUPS:
        try:
            total = min(total, int(Path(group).read_text()))
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return total + swap


def peak_memory(device: torch.device) -> int:
    """Bytes that this rank has held at most, on a CPU those of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
