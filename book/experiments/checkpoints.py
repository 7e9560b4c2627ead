"""Chapter 12's other record: the tiny preset's run, scored at its checkpoints.

    python book/experiments/checkpoints.py [FOLDER]

Trains as `make train` does and keeps every hundredth step (or goes on with FOLDER, or
only scores it where it is finished). The record is written after every checkpoint, and
a script that was stopped goes on. Seconds are the processor's, without the training of
a FOLDER that was finished.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from slm2_minimal.config import RunConfig
from slm2_minimal.distributed.pretrained import load_model
from slm2_minimal.evaluate.bits import summarise, text_scores
from slm2_minimal.teach import save_record
from slm2_minimal.text.corpus import LANGUAGES
from slm2_minimal.text.tokenizer import load_tokenizer
from slm2_minimal.train.trainer import Trainer

from common import begun, held_out, scored

OUT = Path(__file__).parents[1] / "recorded" / "checkpoints.json"
EVERY = 100
SCORED = (100, 300, 600, 1200)
TASKS = tuple(
    f"local_{name}" for name in ("cloze", "next", "order", "agreement", "translation", "arithmetic")
)
WINDOWS = ((256, 256), (256, 128), (64, 64), (64, 32))


def by_window(folder: Path) -> list[list[float]]:
    """(context, stride, bits per byte) of English with the last weights."""
    model, name = load_model(str(folder))
    assert name is not None
    rows = []
    for context, stride in WINDOWS:
        found = text_scores(model, load_tokenizer(name), held_out(["en"]), stride, context)
        rows.append([context, stride, round(summarise(found)["en"].bits_per_byte, 4)])
    return rows


def main() -> None:
    """Train, score and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/checkpoints"))
    folder = parser.parse_args().folder
    changes = {"save_every": EVERY, "keep_checkpoints": 1200 // EVERY, "output_dir": str(folder)}
    config = RunConfig.load("tiny", {f"train.{key}": value for key, value in changes.items()})
    started = time.process_time()
    Trainer.from_config(config).run()

    command = "python book/experiments/checkpoints.py"
    texts = held_out([*LANGUAGES, "math"])
    runs = begun(OUT, command, len(SCORED))
    for step in SCORED[len(runs) :]:
        checkpoint = folder / f"step-{step:08d}"
        run = {"step": step, **scored(load_model(str(checkpoint))[0], texts, TASKS)}
        run["seconds"] = round(time.process_time() - started)
        runs.append(run)
        started = time.process_time()

        results: dict[str, Any] = {"runs": runs}
        results["documents"] = [each.id for each in texts if each.language == "en"]
        if step == SCORED[-1]:
            results["windows"] = by_window(checkpoint)
        save_record(OUT, command, results, sum(each["seconds"] for each in runs))
        print(f"  step {step}: {run['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
