"""Our training step beside transformers' `StableLmForCausalLM`, on the same weights,
batch and optimizer, interleaved in one process.

    python benchmarks/train_step.py [--dtype bfloat16|float32] [--rounds 9] [--compile]

A step is forward, loss, backward, clipping, fused AdamW, zero_grad. Reported are
medians over the rounds, and the fastest step; the share of the matrix-product rate
measured in the same run (flops_per_token's count); and each side's peak memory,
measured in a process of its own. Losses are held against each other first: what is
timed computes the same. `--compile` has both sides' blocks compiled, one by one, as
`parallel.compile` does it; that needs a C++ compiler.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import ModelConfig, OptimizerConfig
from slm2_minimal.data.loader import Batch
from slm2_minimal.distributed.device import autocast, matmul_flops, pick_device, synchronize
from slm2_minimal.model.flops import flops_per_token
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.optimizer import build_optimizer
from slm2_minimal.train.step import take_step

CONFIG = ModelConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=0,
)
SIDES = ("slm2_minimal", "transformers")
BATCH_SIZE = 4
SEQ_LEN = 512
LR = 1e-4


def batch(device: torch.device) -> Batch:
    """Random ids, one document a row, as transformers sees them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, CONFIG.vocab_size, (BATCH_SIZE, SEQ_LEN + 1), generator=generator)
    input_ids, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    positions = torch.arange(SEQ_LEN).expand(BATCH_SIZE, SEQ_LEN)
    return Batch(input_ids, labels, positions, torch.zeros_like(positions)).to(device)


def ours(device: torch.device, dtype: torch.dtype, compiled: bool) -> Callable[[], float]:
    """The package's step."""
    torch.manual_seed(0)
    model = StableLM2(CONFIG).to(device)
    if compiled:
        compile_blocks(model)
    optimizer = build_optimizer(model, OptimizerConfig())
    data = batch(device)

    def step() -> float:
        loss, _ = take_step(model, optimizer, [data], lr=LR, clip_norm=1.0, dtype=dtype)
        return loss

    return step


def compile_blocks(model: Any) -> None:
    """Each block by itself, which is compiled once for all of them."""
    for block in model.model.layers:
        block.compile()


def theirs(device: torch.device, dtype: torch.dtype, compiled: bool) -> Callable[[], float]:
    """transformers' model from the same weights, its own loss, SDPA attention, the same
    optimizer settings.
    """
    from transformers import StableLmForCausalLM

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        StableLM2(CONFIG).save_pretrained(folder)
        model = StableLmForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        )
    model.to(device).train()
    if compiled:
        compile_blocks(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    data = batch(device)

    def step() -> float:
        with autocast(device, dtype):
            labels = {"labels": data.labels, "shift_labels": data.labels}
            loss = model(input_ids=data.input_ids, use_cache=False, **labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def measure(
    device: torch.device, dtype: torch.dtype, rounds: int, compiled: bool
) -> dict[str, dict[str, float]]:
    """Seconds per step of both, one step of each in turn."""
    sides = {
        "slm2_minimal": ours(device, dtype, compiled),
        "transformers": theirs(device, dtype, compiled),
    }
    losses = {name: step() for name, step in sides.items()}
    difference = abs(losses["slm2_minimal"] - losses["transformers"])
    assert difference < 0.02, f"not the same work: {losses}"

    # one step of each in turn
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)

    peak_flops = matmul_flops(device, dtype, 2048)
    tokens = BATCH_SIZE * SEQ_LEN
    results = {"peak": {"gflops": peak_flops / 1e9}}
    for name, times in seconds.items():
        median = statistics.median(times)
        results[name] = {
            "seconds": median,
            "fastest": min(times),
            "tokens_per_second": tokens / median,
            "share_of_peak": flops_per_token(CONFIG, SEQ_LEN) * tokens / median / peak_flops,
        }
    return results


def peak_memory(side: str, device: torch.device, dtype: torch.dtype, compiled: bool) -> float:
    """MiB at the highest point of three steps: allocated on a GPU; on a CPU resident,
    above what the imports alone held.
    """
    import transformers  # noqa: F401  both sides start from the same imports

    before = resident_peak()
    step = (ours if side == "slm2_minimal" else theirs)(device, dtype, compiled)
    for _ in range(3):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resident_peak() - before


def resident_peak() -> float:
    """The highest resident size of this process so far, in MiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    """Measure and print one table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device, dtype = pick_device("auto"), getattr(torch, options.dtype)
    if options.memory_of:
        print(peak_memory(options.memory_of, device, dtype, options.compile))
        return

    # seconds here, memory in a process for each side
    results = measure(device, dtype, options.rounds, options.compile)
    command = [sys.executable, __file__, "--dtype", options.dtype]
    if options.compile:
        command.append("--compile")
    for name in SIDES:
        child = subprocess.run(
            [*command, "--memory-of", name], capture_output=True, text=True, check=True
        )
        results[name]["peak_mib"] = float(child.stdout.split()[-1])

    # the table
    blocks = "compiled" if options.compile else "eager"
    print(
        f"{options.dtype}, {blocks}, on {device}, {torch.get_num_threads()} threads; matrix product"
        f" {results['peak']['gflops']:,.0f} GFLOP/s"
    )
    for name in SIDES:
        row = results[name]
        print(
            f"{name:<14}{row['tokens_per_second']:>9,.0f} tokens/s {row['seconds'] * 1e3:>8.0f} ms"
            f" (fastest {row['fastest'] * 1e3:.0f}) {row['share_of_peak']:>7.1%} of peak"
            f" {row['peak_mib']:>7,.0f} MiB"
        )
    us, them = (results[name] for name in SIDES)
    ratio = us["tokens_per_second"] / them["tokens_per_second"]
    print(f"ratio {ratio:.2f}; of the fastest steps {them['fastest'] / us['fastest']:.2f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
