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
from typing import Any

from slm2_minimal.config import RunConfig
from slm2_minimal.teach import COLORS, LINE_STYLES, save_record, use_style
from slm2_minimal.text.corpus import LANGUAGES
from slm2_minimal.train.trainer import Trainer

BOOK = Path(__file__).parents[1]


def condense(folder: Path) -> dict[str, Any]:
    """The curves and samples of a run's metrics.jsonl."""
    records = [
        json.loads(line)
        for line in (
            (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        )
    ]
    of_kind = {
        kind: [r for r in records if r["kind"] == kind]
        for kind in ("train", "validation", "sample", "best")
    }
    best = of_kind["best"][-1]
    return {
        "train": [
            {
                key: float(f"{r[key]:.4g}")
                for key in ("step", "loss", "rate", "grad_norm")
            }
            for r in of_kind["train"]
        ],
        "tokens_per_second": sorted(
            r["tokens_per_second"] for r in of_kind["train"]
        )[len(of_kind["train"]) // 2],
        "share_of_peak": sorted(r["share_of_peak"] for r in of_kind["train"])[
            len(of_kind["train"]) // 2
        ],
        "validation": [
            {
                "step": r["step"],
                **{k: round(v, 4) for k, v in r["loss"].items()},
            }
            for r in of_kind["validation"]
        ],
        "unigram": {
            name: round(loss, 4) for name, loss in best["unigram"].items()
        },
        "best": {
            "step": best["step"],
            **{k: round(v, 4) for k, v in best["loss"].items()},
        },
        "samples_before": [
            r["text"] for r in of_kind["sample"] if r["step"] == 0
        ],
        "samples_after": [
            r["text"] for r in of_kind["sample"] if r["step"] != 0
        ],
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Validation loss per language, with the unigram's loss as a mark at the right."""
    import matplotlib.pyplot as plt

    use_style()
    figure, axes = plt.subplots(figsize=(8, 4))
    for i, name in enumerate(LANGUAGES):
        steps, losses = zip(
            *((row["step"], row[name]) for row in results["validation"]),
            strict=True,
        )
        axes.plot(
            steps, losses, color=COLORS[i], linestyle=LINE_STYLES[i], label=name
        )
        axes.plot(
            steps[-1] * 1.03,
            results["unigram"][name],
            marker="_",
            markersize=14,
            color=COLORS[i],
        )
    axes.set(xlabel="step", ylabel="validation loss (nats per token)")
    axes.legend(ncols=3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, condense, record, draw."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (
            Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "run"
        )
        Trainer.from_config(
            RunConfig.load("tiny", {"train.output_dir": str(folder)})
        ).run()
        results = condense(folder)
    seconds = time.perf_counter() - started
    save_record(
        BOOK / "recorded" / "tiny_run.json",
        "python book/experiments/tiny_run.py",
        results | {"seconds": round(seconds)},
        seconds,
    )
    draw(results, BOOK / "_static" / "tiny-run.png")


if __name__ == "__main__":
    main()
