"""What the loader costs at the full model's batch shape, against the time of a step.

    python benchmarks/loader.py [--gigabytes 2]

A rank of the report's run reads 2 micro-batches of 2 sequences of 4,096 tokens a step,
and a step takes 1.065 s (derived: 1.105e10 FLOP per token at 170 TFLOP/s). Shards of
200 MB with documents of 50 to 2,000 random tokens stand for the data, in two sources.
Measured: the time of `Loader.batch` per step, the first time after the system was asked
to drop the files from its cache, and again; and the time that training waits for
`Loader.batches` with two worker processes, while it sleeps for 0.1 s per step.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slm2_minimal.data.loader import Loader
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import ShardedStream, write_shard

STEP_SECONDS = 1.065
STEPS = 200
SEQUENCES = 4  # a step
SEQ_LEN = 4096
SHARD_TOKENS = 50_000_000
EOS = 100_257


def write_source(folder: Path, name: str, shards: int) -> ShardedStream:
    """Random tokens; their values do not matter to the loader."""
    rng = np.random.default_rng(0)
    written = []
    for number in range(shards):
        ends = np.cumsum(rng.integers(50, 2_000, size=SHARD_TOKENS // 1_000))
        starts = np.concatenate([[0], ends[ends < SHARD_TOKENS]]).astype(np.int64)
        tokens = rng.integers(0, 100_256, size=SHARD_TOKENS, dtype=np.uint32)
        stream = TokenStream(tokens, starts, EOS)
        written.append(write_shard(folder, f"{name}-{number:06d}", stream))
    return ShardedStream(folder, written, EOS)


def drop_cache(folder: Path) -> None:
    """Ask the system to forget the files' pages (Linux)."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def per_step(work: Callable[[int], object], pause: float = 0.0) -> list[float]:
    """Seconds of each of the steps."""
    seconds = []
    for step in range(STEPS):
        time.sleep(pause)
        begin = time.perf_counter()
        work(step)
        seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards = max(1, round(options.gigabytes * 1e9 / (4 * SHARD_TOKENS) / 2))
        streams = {name: write_source(folder, name, shards) for name in ("a", "b")}
        loader = Loader(streams, {"a": 3, "b": 1}, SEQ_LEN, 1234)
        print(f"{sum(loader.counts):,} sequences of {SEQ_LEN}; {SEQUENCES} a step; {STEPS} steps")

        drop_cache(folder)
        for name in ("first pass, after dropping the cache", "again"):
            report(name, per_step(lambda step: loader.batch(step * SEQUENCES, SEQUENCES)))

        ahead = loader.batches(0, SEQUENCES, workers=2)
        next(ahead)
        report("waiting for 2 worker processes", per_step(lambda step: next(ahead), pause=0.1))


def report(name: str, seconds: list[float]) -> None:
    """One line: the median and the worst of some steps."""
    median = statistics.median(seconds)
    print(
        f"{name:38} median {median * 1e3:6.2f} ms ({median / STEP_SECONDS:.2%} of a step),"
        f" worst {max(seconds) * 1e3:6.2f} ms"
    )


if __name__ == "__main__":
    main()
