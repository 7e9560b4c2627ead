"""Chapter 12's recorded runs: chapter 6's mixtures, scored by bits and by tasks.

    python book/experiments/languages.py [--steps 400] [--seeds 3] [--weights FOLDER]

The weights of every run are kept in FOLDER (runs/languages), so that another score of
them needs no other training. The record is written after every run, and a script that
was stopped goes on. Seconds are the processor's, since the machine may be busy.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from slm2_minimal.files import read_json, write_json
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.teach import save_record
from slm2_minimal.text.corpus import LANGUAGES

from common import begun, held_out, scored, train_toy
from mixture import schedule, sources

OUT = Path(__file__).parents[1] / "recorded" / "languages.json"
SHARES = (0, 6, 12, 50)  # percent of the sequences
TASKS = tuple(f"local_{name}" for name in ("cloze", "next", "order", "agreement", "translation"))


def train(folder: Path, share: int, steps: int, seed: int) -> int:
    """Leave the weights of one run in `folder`, where they are not there yet; the
    seconds that took.
    """
    if not (folder / "seconds.json").is_file():
        started = time.process_time()
        seeds = {"train__seed": seed, "data__seed": seed}
        train_toy(steps, (), folder, data__sources=sources(share), **schedule(steps), **seeds)
        write_json(folder / "seconds.json", round(time.process_time() - started))
    seconds: int = read_json(folder / "seconds.json")
    return seconds


def main() -> None:
    """Train and score everything, and write the record, run by run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", type=Path, default=Path("runs/languages"))
    options = parser.parse_args()

    command = "python book/experiments/languages.py"
    command += f" --steps {options.steps} --seeds {options.seeds}"
    texts = held_out(LANGUAGES)
    results: dict[str, Any] = {
        "steps": options.steps,
        "shares": list(SHARES),
        "documents": [each.id for each in texts if each.language == "en"],
        "runs": begun(OUT, command, len(SHARES) * options.seeds),
    }
    done = {(run["share"], run["seed"]) for run in results["runs"]}
    for seed, share in itertools.product(range(options.seeds), SHARES):
        if (share, seed) in done:
            continue
        folder = options.weights / f"{share}-{seed}"
        seconds = train(folder, share, options.steps, seed)
        started = time.process_time()
        found = scored(StableLM2.from_pretrained(folder), texts, TASKS)
        run = {"share": share, "seed": seed, **found}
        run["seconds"] = seconds + round(time.process_time() - started)
        results["runs"].append(run)
        save_record(OUT, command, results, sum(each["seconds"] for each in results["runs"]))
        print(f"  {share}%, seed {seed}: {run['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
