"""`slm2 prepare` against the floor: what tiktoken needs for the same text when nothing
is read or written.

    python benchmarks/prepare.py [--megabytes 104] [--rounds 9]

The text is the embedded corpus, its paragraphs drawn anew into documents of six.
Floors: two calls of tiktoken over the texts in memory, one by one, and the stage's own
call, which gives tiktoken many texts at once; results thrown away, in one process, and
in two at once, each on half. Ours: the stage that reads units, tokenises, and writes
shards, with one worker and with two, timed whole, with the start of its processes. All
take turns, in another order every round; medians, and the fastest of each beside them.
Then one whole preparation, from JSON Lines over duplicates to the manifest, stage by
stage. One thread per process.
"""

import argparse
import json
import logging
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}

from slm2_minimal.config import RunConfig
from slm2_minimal.prepare.minhash import batches
from slm2_minimal.prepare.run import claim, prepare
from slm2_minimal.prepare.work import cached_tokenizer, ingest_source, tokenise_unit
from slm2_minimal.prepare.workers import in_parallel
from slm2_minimal.text.corpus import load_corpus

# A list of ids, as most programs ask for; an array; the stage's own call.
CALLS = ("encode_ordinary", "encode_to_numpy", "encode_documents")
OURS = "tokenise and write"
TEXTS: list[str] = []  # what the forked processes of the floor find in memory


def generate(path: Path, megabytes: int) -> None:
    """Documents of six paragraphs each, in JSON Lines."""
    rng, written = random.Random(0), 0
    paragraphs = [part for document in load_corpus() for part in document.text.split("\n\n")]
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            text = "\n\n".join(rng.choices(paragraphs, k=6))
            TEXTS.append(text)
            written += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def encode_slice(slice_: slice, call: str) -> tuple[float, float]:
    """When tiktoken began and ended with a part of the texts."""
    tokenizer, texts = cached_tokenizer("arcade100k"), TEXTS[slice_]
    begin = time.perf_counter()
    if call == "encode_documents":
        for batch in batches(texts):
            tokenizer.encode_documents(batch)
    else:
        options = {}
        if call == "encode_to_numpy":
            options = {"allowed_special": set(), "disallowed_special": ()}
        encode = getattr(tokenizer.encoding, call)  # type: ignore[attr-defined]
        for text in texts:
            encode(text, **options)
    return begin, time.perf_counter()


def floor(processes: int, call: str) -> float:
    """Seconds of tiktoken alone, from the first process's first call to the last one's
    last.
    """
    slices = [slice(i, None, processes) for i in range(processes)]
    with ProcessPoolExecutor(processes) as pool:
        spans = list(pool.map(encode_slice, slices, [call] * processes))
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def stage(run: RunConfig, workers: int) -> float:
    """Seconds of the tokenise-and-write stage over the units that are there."""
    job = claim(run)
    units = ingest_source(job, "web")
    shutil.rmtree(job.work / "tokenised", ignore_errors=True)
    begin = time.perf_counter()
    in_parallel("tokenise", partial(tokenise_unit, job), units, workers)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=104)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    cached_tokenizer("arcade100k")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        generate(folder / "web.jsonl", options.megabytes)
        size = sum(len(text.encode()) for text in TEXTS) / 1e6
        base = {
            "data.tokenizer": "arcade100k",
            "data.sources": {"web": {"path": str(folder / "web.jsonl")}},
            "data.validation_percent": 0,
            "prepare.shard_megabytes": 13,
            "prepare.workers": 2,
        }
        own = {"data.prepared": str(folder / "stage"), "prepare.duplicates": "keep"}
        run = RunConfig.load("tiny", base | own)
        runs: dict[tuple[str, int], Callable[[], float]] = {}
        for processes in (1, 2):
            runs |= {(call, processes): partial(floor, processes, call) for call in CALLS}
            runs[OURS, processes] = partial(stage, run, processes)
        names, seconds = list(runs), {name: list[float]() for name in runs}
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds[name].append(runs[name]())
        print(
            f"{size:.1f} MB in {len(TEXTS):,} documents, MB/s: median of {options.rounds}"
            " (fastest), and what ours is of it"
        )
        for name, processes in names:
            theirs, ours = seconds[name, processes], seconds[OURS, processes]
            median, fastest = statistics.median(theirs), min(theirs)
            print(
                f"{name:>18}, {processes} processes {size / median:6.2f} ({size / fastest:.2f})   "
                f"{median / statistics.median(ours):6.1%} ({fastest / min(ours):.1%})",
                flush=True,
            )

        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        begin = time.perf_counter()
        prepare(RunConfig.load("tiny", base | {"data.prepared": str(folder / "whole")}))
        print(f"the whole preparation, 2 workers: {size / (time.perf_counter() - begin):.2f} MB/s")


if __name__ == "__main__":
    main()
