"""Chapter 6's recorded runs: the toy model at several shares of non-English text, a few
seeds each.

    python book/experiments/mixture.py [--steps 400] [--seeds 3]

The total number of tokens is the same in every run. English has 100 - s of every 100
sequences, the six other languages share the rest equally.
"""

import time
from pathlib import Path
from typing import Any

from slm2_minimal.config import RunConfig
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.teach import save_record
from slm2_minimal.text.tokenizer import load_tokenizer

from common import TOY, parse_options, train_toy, validation_sets

OUT = Path(__file__).parents[1] / "recorded" / "mixture.json"
SHARES = (0, 3, 6, 12, 25, 50)  # percent of the sequences; the report's mix has 6.97
OTHERS = ("de", "es", "fr", "it", "nl", "pt")


def sources(share: int) -> dict[str, Any]:
    """The `[data.sources]` table with `share` percent of non-English text. Weights are
    integers out of 600.
    """
    table: dict[str, Any] = {"en": {"languages": ["en"], "weight": 6 * (100 - share)}}
    if share:
        table |= {name: {"languages": [name], "weight": share} for name in OTHERS}
    return table


def schedule(steps: int) -> dict[str, int]:
    """The preset's schedule in proportion, so that every run ends with its cooldown."""
    cooldown = round(0.16 * steps)
    return {
        "schedule__warmup_steps": max(1, round(0.018 * 1.08 * steps)),
        "schedule__decay_steps": round(1.08 * steps),
        "schedule__cooldown_start": steps - cooldown,
        "schedule__cooldown_steps": cooldown,
    }


def epochs(share: int, steps: int) -> dict[str, float]:
    """How often each source has been read at the end of a run."""
    config = RunConfig.load("tiny", TOY | {"data.sources": sources(share)})
    data = open_training_data(config.data, load_tokenizer(config.data.tokenizer))
    position = steps * config.train.global_batch_tokens // config.data.seq_len
    read = data.loader.epochs(position)
    return {name: round(times, 3) for name, times in read.items()}


def validate(share: int, steps: int, seed: int) -> dict[str, float]:
    """The validation losses at the end of one run."""
    seeds = {"train__seed": seed, "data__seed": seed}
    run = train_toy(steps, {steps}, data__sources=sources(share), **schedule(steps), **seeds)
    return run["validation"][steps]


def main() -> None:
    """Run everything and write the record."""
    options = parse_options(__doc__, steps=400, seeds=3)
    steps, seeds = options.steps, options.seeds
    started = time.perf_counter()
    validation = {
        str(share): [validate(share, steps, seed) for seed in range(seeds)] for share in SHARES
    }

    sets = validation_sets()
    results = {
        "steps": steps,
        "tokens_per_step": TOY["train.global_batch_tokens"],
        "shares": list(SHARES),
        "epochs": {str(share): epochs(share, steps) for share in SHARES},
        "unigram": {name: round(held_out.unigram_loss, 4) for name, held_out in sets.items()},
        "validation": validation,
    }
    command = f"python book/experiments/mixture.py --steps {steps} --seeds {seeds}"
    save_record(OUT, command, results, time.perf_counter() - started)
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
