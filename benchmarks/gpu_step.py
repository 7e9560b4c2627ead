"""The training step of the 1.6B on one GPU: packed and whole rows, compiled or not,
with and without checkpointing, beside its peers.

    python benchmarks/gpu_step.py          # one 80 GB GPU, under 8 minutes, no network
    python benchmarks/gpu_step.py --small  # the CPU and a tiny model: measures nothing

A step is one micro-batch: forward, loss, backward, clipping, fused AdamW, zero_grad, in
bf16 over fp32 weights. All sides work on the very same parameters, whose rate is 0, so
that they compute the same at every step: losses and a gradient are held against each
other. Two steps of each side in turn, the second timed, medians: the first takes from
the GPU what the side before gave back. MFU is `flops_per_token`, which counts attention
over whole rows and no repetition, over the peak of the data sheet. Memory is the
allocator's peak in a step less what other sides hold, beside the planner's prediction
for ours. Peers that are not installed and sides that do not fit are named and left out.
transformers and litgpt see whole rows only.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import ModelConfig
from slm2_minimal.distributed.device import DATA_SHEET_PEAK, peak_flops
from slm2_minimal.model.flops import flops_per_token

sys.path.insert(0, str(Path(__file__).parents[1]))  # for a run as a script

from benchmarks.gpu_sides import BF16, Bench, Side

WARM_UP = 2
# Its gradient shows what the first attention gave and what all that follows did.
WITNESS = "model.layers.0.self_attn.o_proj.weight"
SMALL = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
    initializer_range=0.1,
    bos_token_id=0,
    eos_token_id=0,
)
OURS = [  # rows, compiled, checkpointing
    ("whole", False, "none"),
    ("packed", False, "none"),
    ("packed", False, "selective"),
    ("packed", False, "full"),
    ("whole", True, "none"),
    ("packed", True, "none"),
    ("packed", True, "selective"),
    ("packed", True, "full"),
]


def candidates(bench: Bench) -> Iterator[tuple[str, Callable[[], Side]]]:
    """A name for each side, and what builds it; what takes longest to compile comes
    last.
    """
    ours = [(f"slm2_minimal {side}", partial(bench.ours, *side)) for side in OURS]
    yield from ours[:4]
    yield from (
        (f"transformers {kernel}", partial(bench.transformers, kernel, False))
        for kernel in ("sdpa", "flash_attention_2")
    )
    yield "litgpt", partial(bench.litgpt, False)
    yield from ours[4:]
    yield "transformers sdpa, compiled", partial(bench.transformers, "sdpa", True)
    yield "litgpt, compiled", partial(bench.litgpt, True)


def warmed_up(bench: Bench, only: str, end: float) -> tuple[list[Side], int]:
    """The sides that can be had before `end` and fit, each after WARM_UP steps; and how
    many failed where they should not have.
    """
    sides: list[Side] = []
    failed = 0
    for name, build in candidates(bench):
        if only not in name:
            continue
        start = time.perf_counter()
        problem = "no time left" if start > end else ""
        try:
            if not problem:
                side = build()
                warm_up(bench, side)
                first = next((other for other in sides if other.rows == side.rows), side)
                problem = difference(side, first)
                if problem:
                    failed += 1
        except ImportError as error:
            problem = str(error).splitlines()[0]
        except torch.OutOfMemoryError:
            problem = "does not fit"
        except Exception:  # one side's failure is not to take the others' readings away
            traceback.print_exc()
            problem = "failed"
            failed += 1

        if problem:
            side = None
            bench.free()
            print(f"left out: {name}: {problem}", flush=True)
            continue
        print(
            f"ready after {time.perf_counter() - start:.0f} s: {side.name}, {side.rows} rows: loss"
            f" {side.loss:.4f}",
            flush=True,
        )
        side.seconds = []
        side.peak = 0.0
        sides.append(side)
    return sides, failed


def warm_up(bench: Bench, side: Side) -> None:
    """A few steps, and the loss and the gradient that `side` is compared by."""
    for _ in range(WARM_UP):
        bench.step(side)
    side.loss = side.backward().item()
    side.gradient = bench.parameters[WITNESS].grad
    bench.optimizer.zero_grad()


def difference(side: Side, first: Side) -> str:
    """What shows that `side` computes something else than the first side on the same
    rows; empty if nothing does.
    """
    assert side.gradient is not None
    assert first.gradient is not None
    off = float((side.gradient - first.gradient).norm() / first.gradient.norm())
    if abs(side.loss - first.loss) < 0.01 and off < 0.05:
        return ""
    return (
        f"not the same work: loss {side.loss:.4f}, {first.loss:.4f} of {first.name}; gradient"
        f" {off:.1%} off"
    )


def measure(bench: Bench, sides: list[Side], rounds: int, end: float) -> int:
    """Two steps of each side in turn, `rounds` times or until `end`, but once at least;
    how many rounds there were.
    """
    for done in range(rounds):
        if done and time.perf_counter() > end:
            return done
        for side in sides:
            bench.free()
            bench.step(side)
            side.seconds.pop()
            bench.step(side)
    return rounds


def report(bench: Bench, sides: list[Side], rounds: int) -> dict[str, Any]:
    """Print the table; return the same and all seconds as plain data."""
    tokens = bench.run.train.micro_batch_size * bench.run.data.seq_len
    flops = flops_per_token(bench.run.model, bench.run.data.seq_len)
    peak = peak_flops(bench.device, BF16)
    card = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    source = "data sheet" if any(name in card for name in DATA_SHEET_PEAK) else "measured now"
    print(
        f"{datetime.date.today()}, {card}, torch {torch.__version__}, {rounds} rounds; peak"
        f" {peak / 1e12:.4g} TFLOP/s ({source})"
    )
    print(
        f"{bench.run.model.num_parameters():,} parameters, a step of {tokens:,} tokens, {flops:.3e}"
        " FLOP a token"
    )
    print(f"{'':<52}{'rows':<8}{'tokens/s':>10}{'ms':>9}{'MFU':>8}{'peak GB':>9}{'planned':>9}")
    table = []
    for side in sides:
        seconds = statistics.median(side.seconds)
        tokens_per_second = tokens / seconds
        mfu = tokens_per_second * flops / peak
        print(
            f"{side.name:<52}{side.rows:<8}{tokens_per_second:>10,.0f}{seconds * 1e3:>9.1f}"
            f"{mfu:>8.1%}{gigabytes(side.peak)}{gigabytes(side.planned)}"
        )
        table.append(
            {
                "side": side.name,
                "rows": side.rows,
                "tokens_per_second": tokens_per_second,
                "mfu": mfu,
                "peak_bytes": side.peak or None,
                "planned_bytes": side.planned,
                "loss": side.loss,
                "seconds": side.seconds,
            }
        )
    return {
        "date": str(datetime.date.today()),
        "card": card,
        "torch": torch.__version__,
        "peak": peak,
        "tokens": tokens,
        "sides": table,
    }


def gigabytes(size: float | None) -> str:
    """A cell of the table; a dash where nothing was measured."""
    return f"{size / 1e9:>9.1f}" if size else f"{'-':>9}"


def main() -> None:
    """Measure and print one table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro-batch", type=int, default=2, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--seconds",
        type=float,
        default=420,
        help="no side is begun after two thirds of this, no round after all of it",
    )
    parser.add_argument(
        "--only",
        default="",
        help="sides whose name has this in it: slm2_minimal, transformers, litgpt",
    )
    parser.add_argument(
        "--small", action="store_true", help="a tiny model on the CPU, to see that all of it runs"
    )
    options = parser.parse_args()
    start = time.perf_counter()
    if not options.small and not torch.cuda.is_available():
        sys.exit("gpu_step: no CUDA device is visible to torch; --small runs it on the CPU")
    if options.small:
        print("a tiny model on the CPU: what follows measures nothing")
        bench = Bench(torch.device("cpu"), SMALL, 2, 128)
    else:
        bench = Bench(
            torch.device("cuda"),
            ModelConfig.preset("stablelm-2-1_6b"),
            options.micro_batch,
            options.length,
        )
    sides, failed = warmed_up(bench, options.only, start + 2 / 3 * options.seconds)
    rounds = measure(bench, sides, options.rounds, start + options.seconds)
    print(json.dumps(report(bench, sides, rounds)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
