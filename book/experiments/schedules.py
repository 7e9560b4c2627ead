"""Chapter 4's recorded runs: four schedules with the same average rate, and cooldowns
beside the trunks that they leave; three seeds each.

python book/experiments/schedules.py [--steps 400] [--seeds 3]

The hybrid's trunk is validated where its branches end, too, so that both are compared
at equal steps. WSD is itself a branch; its trunk is the same constant rate, kept to the
end.
"""

import argparse
import time
from pathlib import Path

from common import train_toy
from slm2_minimal.config import ScheduleConfig
from slm2_minimal.teach import save_record
from slm2_minimal.train.schedule import average_lr, with_average_lr

OUT = Path(__file__).parents[1] / "recorded" / "schedules.json"
KINDS = ("hybrid", "cosine", "inverse_sqrt", "wsd")


def shapes(steps: int, peak: float = 3e-3) -> dict[str, ScheduleConfig]:
    """Every kind in the report's proportions, scaled so that all have the hybrid's
    average rate over `steps`.
    """
    common = {
        "peak_rate": peak,
        "min_rate": peak / 10,
        "warmup_steps": max(1, round(0.018 * 1.08 * steps)),
    }
    hybrid = ScheduleConfig(
        kind="hybrid", decay_steps=round(1.08 * steps), **common
    )
    target = average_lr(hybrid, steps)
    others = {
        "cosine": ScheduleConfig(kind="cosine", decay_steps=steps, **common),
        "inverse_sqrt": ScheduleConfig(kind="inverse_sqrt", **common),
        "wsd": ScheduleConfig(
            kind="wsd",
            cooldown_start=round(0.84 * steps),
            cooldown_steps=round(0.16 * steps),
            **common,
        ),
    }
    return {"hybrid": hybrid} | {
        name: with_average_lr(config, steps, target)
        for name, config in others.items()
    }


def branches(steps: int) -> dict[str, ScheduleConfig]:
    """The hybrid schedule with a linear cooldown to 0 from two different steps, as long
    as 16% of the run each.
    """
    hybrid, length = shapes(steps)["hybrid"], round(0.16 * steps)
    return {
        f"cooldown from {start}": hybrid.replace(
            cooldown_start=start, cooldown_steps=length
        )
        for start in (steps // 2, steps - length)
    }


def wsd_trunk(steps: int) -> ScheduleConfig:
    """The schedule that WSD is a branch of: its constant rate throughout."""
    return shapes(steps)["wsd"].replace(
        kind="constant", cooldown_start=None, cooldown_steps=None
    )


def overrides(config: ScheduleConfig) -> dict[str, object]:
    """A schedule as overrides of a run."""
    return {
        f"schedule__{name}": value
        for name, value in vars(config).items()
        if not name.startswith("_")
    }


def main() -> None:
    """Run everything and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    started, runs = time.perf_counter(), {}
    ends = {
        name: (config.cooldown_start or 0) + (config.cooldown_steps or 0)
        for name, config in branches(options.steps).items()
    }
    for name, config in (
        shapes(options.steps)
        | branches(options.steps)
        | {"wsd trunk": wsd_trunk(options.steps)}
    ).items():
        last = ends.get(name, options.steps)
        every = range(options.steps // 6, last + 1, options.steps // 6)
        at = {*every, last} | (
            set(ends.values()) if name == "hybrid" else set()
        )
        runs[name] = [
            train_toy(
                last, at, **overrides(config), train__seed=seed, data__seed=seed
            )
            for seed in range(options.seeds)
        ]
    results = {"steps": options.steps, "runs": runs}
    command = (
        f"python book/experiments/schedules.py --steps {options.steps} --seeds"
        f" {options.seeds}"
    )
    save_record(OUT, command, results, time.perf_counter() - started)
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
