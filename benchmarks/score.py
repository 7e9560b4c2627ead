"""Scoring by tasks beside the forward pass of training on the same tokens.

    python benchmarks/score.py [--requests 1000] [--rounds 5]

The tiny preset with random weights scores requests cut from the embedded corpus:
contexts of 10 to 200 tokens, continuations of 1 to 20. The other side reads the same
tokens as training does, in rows of 512 without a gap and batches of 8, and makes the
loss of every one. Both go by turns, after one unmeasured turn. What counts is CPU time,
as other programs may run beside it.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from slm2_minimal import ModelConfig, StableLM2, load_corpus, load_tokenizer
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.evaluate.score import Request, pack, score
from slm2_minimal.model.loss import summed_cross_entropy

SEQ_LEN, BATCH_SIZE = 512, 8


def make_requests(count: int, seed: int = 0) -> list[Request]:
    """Pieces of the corpus, cut at random."""
    choose = random.Random(seed)
    tokenizer = load_tokenizer("tiny")
    texts = [tokenizer.encode(document.text) for document in load_corpus()]
    texts = [ids for ids in texts if len(ids) > 220]
    requests = []
    while len(requests) < count:
        ids = choose.choice(texts)
        context, continuation = choose.randint(10, 200), choose.randint(1, 20)
        begin = choose.randrange(len(ids) - context - continuation)
        middle = begin + context
        requests.append(Request(ids[begin:middle], ids[middle : middle + continuation]))
    return requests


def training_batches(requests: list[Request]) -> list[Batch]:
    """The tokens that scoring reads, laid end to end."""
    documents = [(context + continuation)[:-1] for context, continuation in requests]
    lengths = np.asarray([len(ids) for ids in documents])
    stream = TokenStream.from_lengths(np.concatenate(documents).astype(np.uint32), lengths, 0)
    rows = [stream.sequence(i, SEQ_LEN) for i in range(stream.num_sequences(SEQ_LEN))]
    return [Batch.stack(rows[i : i + BATCH_SIZE]) for i in range(0, len(rows), BATCH_SIZE)]


@torch.no_grad()
def forward(model: StableLM2, batches: list[Batch]) -> None:
    """The forward pass and the loss of training."""
    for batch in batches:
        head = partial(summed_cross_entropy, labels=batch.labels)
        model(batch.input_ids, batch.position_ids, batch.attention_ids, head=head)


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = StableLM2(ModelConfig.preset("tiny"))
    requests = make_requests(options.requests)
    batches = training_batches(requests)

    rows = pack([len(context) + len(ids) - 1 for context, ids in requests], SEQ_LEN)
    tokens = sum(row.tokens for row in rows)
    print(f"{len(requests):,} requests, {tokens:,} tokens, {torch.get_num_threads()} threads")
    print(f"{len(rows)} rows to score, {sum(len(batch.labels) for batch in batches)} of training")

    sides = {"scoring": lambda: score(model, requests), "training": lambda: forward(model, batches)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        taken = {name: seconds(work) for name, work in sides.items()}
        shown = ", ".join(f"{name} {each:.2f} s" for name, each in taken.items())
        print(f"turn {turn}: {shown}, {taken['scoring'] / taken['training']:.3f}", flush=True)
        for name in sides if turn > 0 else ():
            times[name].append(taken[name])
    for name, taken_by_turn in times.items():
        median = statistics.median(taken_by_turn)
        print(f"{name:<9} median {median:.2f} s, {tokens / median:,.0f} tokens/s")
    ratios = [ours / theirs for ours, theirs in zip(*times.values(), strict=True)]
    print(f"scoring / training: median {statistics.median(ratios):.3f} of {options.rounds} turns")


if __name__ == "__main__":
    main()
