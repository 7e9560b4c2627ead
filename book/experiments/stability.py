"""Chapter 3's recorded runs: the toy model with and without the learned biases of its
norms, at peak rates to past where training breaks.

    python book/experiments/stability.py [--steps 300] [--seeds 4]

Only English is read, so that a jump of the loss is not merely a batch in another
language. Runs of equal seed begin with equal weights and read the same batches, so they
can be compared in pairs.

Decided before the runs, with the edge known from a seed that is not recorded, biases
on:

- A run has diverged if it ends above the unigram model on held-out text: whatever it
  knew of context is gone. So has a run that the trainer gives up because loss or
  gradient are not finite.
- Its spike is the largest rise of the loss above the mean of the 20 steps before; its
  gradient norm, the 95% quantile over all steps, before clipping.
- Prediction: no clear difference of the final loss where training works, and the same
  share of diverged runs at every rate. If there is a difference past the edge, then in
  favour of no biases: they do not decay, and Adam moves each of them by about the rate
  in every step.
"""

import math
import time
from pathlib import Path
from statistics import mean, quantiles

from slm2_minimal.teach import save_record
from slm2_minimal.train.trainer import TrainingError

from common import TOY, parse_options, train_toy, validation_sets
from mixture import schedule

OUT = Path(__file__).parents[1] / "recorded" / "stability.json"
PEAKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # the first is the preset's
VARIANTS = {"with": True, "without": False}
WINDOW = 20


def spike(losses: list[float]) -> float:
    """The largest rise of a loss above the mean of the `WINDOW` before it, or of all
    before it where there are fewer.
    """
    rises = []
    for step in range(1, len(losses)):
        before = losses[max(0, step - WINDOW) : step]
        rises.append(losses[step] - mean(before))
    return max(rises)


def measure(steps: int, peak: float, bias: bool, seed: int) -> dict[str, float]:
    """Final validation loss on English, largest spike, and high gradient norm of one
    run; all infinite where it came to no end.
    """
    changes = schedule(steps) | {
        "schedule__peak_rate": peak,
        "schedule__min_rate": peak / 10,
        "model__norm_bias": bias,
        "model__final_norm_bias": bias,
        "train__seed": seed,
        "data__seed": seed,
        "data__sources": {"en": {"languages": ["en"], "weight": 1}},
        "train__spike_sigmas": 0.0,  # a guard would hide what is measured here
    }
    try:
        run = train_toy(steps, {steps}, **changes)
    except TrainingError:
        return dict.fromkeys(("loss", "spike", "grad_norm"), math.inf)

    high = quantiles(run["grad_norms"], n=20)[-1]
    return {
        "loss": run["validation"][steps]["en"],
        "spike": round(spike(run["losses"]), 4),
        "grad_norm": round(high, 4),
    }


def main() -> None:
    """Run everything and write the record."""
    options = parse_options(__doc__, steps=300, seeds=4)
    steps, seeds = options.steps, options.seeds
    started = time.perf_counter()
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, bias in VARIANTS.items():
        runs[name] = {}
        for peak in PEAKS:
            measured = [measure(steps, peak, bias, seed) for seed in range(seeds)]
            runs[name][str(peak)] = measured

    results = {
        "steps": steps,
        "tokens_per_step": TOY["train.global_batch_tokens"],
        "peaks": list(PEAKS),
        "unigram": round(validation_sets()["en"].unigram_loss, 4),
        "runs": runs,
    }
    command = f"python book/experiments/stability.py --steps {steps} --seeds {seeds}"
    save_record(OUT, command, results, time.perf_counter() - started)
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
