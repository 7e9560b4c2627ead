"""Chapter 7's recorded run: what `make train` does, condensed, and the README's picture
of it.

    python book/experiments/tiny_run.py [FOLDER]

Trains the tiny preset (or goes on with FOLDER, or only reads it where it is finished)
and condenses its metrics.jsonl.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median_high
from typing import Any

from slm2_minimal.config import RunConfig
from slm2_minimal.teach import COLORS, LINE_STYLES, save_record, use_style
from slm2_minimal.text.corpus import LANGUAGES
from slm2_minimal.train.trainer import Trainer

BOOK = Path(__file__).parents[1]


def rounded(losses: dict[str, float]) -> dict[str, float]:
    """Losses by language, to the digits that a record keeps."""
    return {name: round(loss, 4) for name, loss in losses.items()}


def condense(folder: Path) -> dict[str, Any]:
    """The curves and samples of a run's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    steps, validations, samples, bests = (
        [record for record in records if record["kind"] == kind]
        for kind in ("train", "validation", "sample", "best")
    )

    curve = []
    for record in steps:
        point = {"step": record["step"], "loss": record["loss"]}
        point |= {"rate": record["lr"], "grad_norm": record["grad_norm"]}
        curve.append({key: float(f"{value:.4g}") for key, value in point.items()})
    best = bests[-1]
    return {
        "train": curve,
        "tokens_per_second": median_high(record["tokens_per_second"] for record in steps),
        "share_of_peak": median_high(record["share_of_peak"] for record in steps),
        "validation": [{"step": r["step"], **rounded(r["loss"])} for r in validations],
        "unigram": rounded(best["unigram"]),
        "best": {"step": best["step"], **rounded(best["loss"])},
        "samples_before": [r["text"] for r in samples if r["step"] == 0],
        "samples_after": [r["text"] for r in samples if r["step"] != 0],
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Validation loss per language, with the unigram's loss as a mark at the right."""
    import matplotlib.pyplot as plt

    use_style()
    figure, axes = plt.subplots(figsize=(8, 4))
    steps = [row["step"] for row in results["validation"]]
    for name, color, style in zip(LANGUAGES, COLORS, LINE_STYLES, strict=True):
        losses = [row[name] for row in results["validation"]]
        axes.plot(steps, losses, color=color, linestyle=style, label=name)
        unigram = results["unigram"][name]
        axes.plot(steps[-1] * 1.03, unigram, marker="_", markersize=14, color=color)
    axes.set(xlabel="step", ylabel="validation loss (nats per token)")
    axes.legend(ncols=3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, condense, record, draw."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "run"
        config = RunConfig.load("tiny", {"train.output_dir": str(folder)})
        Trainer.from_config(config).run()
        results = condense(folder)

    seconds = time.perf_counter() - started
    results["seconds"] = round(seconds)
    command = "python book/experiments/tiny_run.py"
    save_record(BOOK / "recorded" / "tiny_run.json", command, results, seconds)
    draw(results, BOOK / "_static" / "tiny-run.png")


if __name__ == "__main__":
    main()
