"""Chapter 1's recorded runs: additions with one digit per token, and with groups of up
to three.

    python book/experiments/digits.py [--steps 2500] [--seeds 3]

A small model of the book's architecture reads additions of two numbers of equally many
digits, from 1 to 5, and is asked for the sums of others. All ways of cutting get the
same additions in the same order. The record is written after every run, and a script
that was stopped goes on. Seconds are the processor's, since the machine may be busy.
"""

import functools
import itertools
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import regex
import torch
from slm2_minimal.config import IGNORE, ModelConfig
from slm2_minimal.model.loss import summed_cross_entropy, token_log_probs
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.teach import save_record
from torch import Tensor

from common import begun, parse_options

OUT = Path(__file__).parents[1] / "recorded" / "digits.json"
LENGTHS = (1, 2, 3, 4, 5)  # digits of both numbers
TESTS = 200  # of each length
BATCH = 32  # additions
PEAK, WARMUP = 3e-3, 0.05  # of the steps
CUTS = {  # how a number falls into tokens: as in Arcade100k, and as in cl100k
    "single": r"\d",
    "left": r"\d{1,3}",
}
SIGNS = ("\n", "+", "=")  # the first closes a sum, and fills up rows

Addition = tuple[int, int]


@functools.cache
def vocabulary(cut: str) -> dict[str, int]:
    """The ids of all signs and numbers that a way of cutting needs: 13 or 1,113."""
    lengths = (1,) if cut == "single" else (1, 2, 3)
    numbers = ["".join(d) for n in lengths for d in itertools.product("0123456789", repeat=n)]
    return {piece: i for i, piece in enumerate([*SIGNS, *numbers])}


def encode(text: str, cut: str) -> list[int]:
    """The ids of an addition: signs alone, digits as `cut` has them."""
    return [vocabulary(cut)[piece] for piece in regex.findall(CUTS[cut] + r"|\D", text)]


def draw(rng: random.Random, digits: int) -> Addition:
    """Two numbers of exactly `digits` digits; 0 has one."""
    low = 10 ** (digits - 1) if digits > 1 else 0
    return rng.randrange(low, 10**digits), rng.randrange(low, 10**digits)


def tests() -> dict[int, list[Addition]]:
    """The additions that are asked. There are 100 of one digit: all of them."""
    rng = random.Random("tests")
    chosen = {1: [(a, b) for a in range(10) for b in range(10)]}
    for digits in LENGTHS[1:]:
        found = {draw(rng, digits): None for _ in range(2 * TESTS)}
        chosen[digits] = list(found)[:TESTS]
    return chosen


def batch(additions: Sequence[Addition], cut: str) -> tuple[Tensor, Tensor]:
    """Rows of additions with their sums, and labels: only the sum and its end."""
    rows = [encode(f"{a}+{b}={a + b}\n", cut) for a, b in additions]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
    labels = ids[:, 1:].clone()
    for row, own in enumerate(rows):
        labels[row, : own.index(SIGNS.index("="))] = IGNORE
        labels[row, len(own) - 1 :] = IGNORE
    return ids[:, :-1], labels


def train(cut: str, seed: int, steps: int) -> StableLM2:
    """A model of the toy's shape, half as deep, after `steps` batches of fresh
    additions; those of the tests with two and more digits are never among them.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    asked = {addition for digits, own in tests().items() if digits > 1 for addition in own}
    sizes = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 352}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    model = StableLM2(
        ModelConfig.preset("tiny").replace(
            vocab_size=len(vocabulary(cut)), initializer_range=0.08, **sizes, **heads
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98))
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / steps / WARMUP, (1 - i / steps) / (1 - WARMUP))
    )
    for _ in range(steps):
        additions: list[Addition] = []
        while len(additions) < BATCH:
            addition = draw(rng, rng.choice(LENGTHS))
            if addition not in asked:
                additions.append(addition)
        ids, labels = batch(additions, cut)
        loss = model(ids, head=partial(summed_cross_entropy, labels=labels))
        (loss / (labels != IGNORE).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        shape.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def measure(model: StableLM2, additions: Sequence[Addition], cut: str) -> dict[str, float]:
    """`right`: the share whose sum and end of sum are the likeliest token by token, as
    greedy writing would give them. `nats`: what a sum and its end cost on average.
    """
    ids, labels = batch(additions, cut)
    log_probs = model(ids, head=partial(token_log_probs, labels=labels))
    right = (model(ids).argmax(-1) == labels) | (labels == IGNORE)
    nats = -log_probs.sum(-1).mean().item()
    return {"right": round(right.all(-1).float().mean().item(), 4), "nats": round(nats, 3)}


def main() -> None:
    """Run everything and write the record, run by run."""
    options = parse_options(__doc__, steps=2500, seeds=3)
    steps, seeds = options.steps, options.seeds
    command = f"python book/experiments/digits.py --steps {steps} --seeds {seeds}"
    runs = begun(OUT, command, len(CUTS) * seeds)
    done = {(run["cut"], run["seed"]) for run in runs}
    asked = tests()

    for cut, seed in itertools.product(CUTS, range(seeds)):
        if (cut, seed) in done:
            continue
        started = time.process_time()
        model = train(cut, seed, steps)
        found = {str(digits): measure(model, own, cut) for digits, own in asked.items()}
        run: dict[str, Any] = {"cut": cut, "seed": seed, "digits": found}
        run["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        run["seconds"] = round(time.process_time() - started)
        runs.append(run)
        print(run, flush=True)
        counts = {str(digits): len(own) for digits, own in asked.items()}
        results = {"steps": steps, "additions": steps * BATCH, "tests": counts, "runs": runs}
        save_record(OUT, command, results, sum(run["seconds"] for run in runs))


if __name__ == "__main__":
    main()
