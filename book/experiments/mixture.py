"""Chapter 5's recorded runs: the toy model at several shares of non-English text, three seeds each.

python book/experiments/mixture.py [--steps 300] [--seeds 3]

The total number of tokens is the same in every run. English has 100 - s of every 100 sequences, the six other
languages share the rest equally.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from common import train_toy

from slm2_minimal.teach import save_record

OUT = Path(__file__).parents[1] / "recorded" / "mixture.json"
SHARES = (0, 3, 6, 12, 25, 50)  # percent of the sequences; the report's mix has 6.97
OTHERS = ("de", "es", "fr", "it", "nl", "pt")


def sources(share: int) -> dict[str, Any]:
    """The `[data.sources]` table with `share` percent of non-English text. Weights are integers out of 600."""
    english = {"en": {"languages": ["en"], "weight": 6 * (100 - share)}}
    return english | ({name: {"languages": [name], "weight": share} for name in OTHERS} if share else {})


def main() -> None:
    """Run everything and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    started, runs = time.perf_counter(), {}
    for share in SHARES:
        runs[str(share)] = [
            train_toy(options.steps, {options.steps}, data__sources=sources(share), train__seed=seed, data__seed=seed)
            for seed in range(options.seeds)
        ]
    results = {"steps": options.steps, "shares": list(SHARES), "runs": runs}
    save_record(OUT, f"python book/experiments/mixture.py --steps {options.steps}", results, time.perf_counter() - started)
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
