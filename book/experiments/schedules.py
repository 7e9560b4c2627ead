"""Chapter 4's recorded runs: four schedules with the same average rate, and cooldowns
beside the trunks that they leave; three seeds each.

    python book/experiments/schedules.py [--steps 400] [--seeds 3]

The hybrid's trunk is validated where its branches end, too, so that both are compared
at equal steps. WSD is itself a branch; its trunk is the same constant rate, kept to the
end.
"""

import time
from pathlib import Path

from slm2_minimal.config import ScheduleConfig
from slm2_minimal.teach import save_record
from slm2_minimal.train.schedule import average_lr, with_average_lr

from common import parse_options, train_toy

OUT = Path(__file__).parents[1] / "recorded" / "schedules.json"


def shapes(steps: int, peak: float = 3e-3) -> dict[str, ScheduleConfig]:
    """Every kind in the report's proportions, scaled so that all have the hybrid's
    average rate over `steps`.
    """
    warmup = max(1, round(0.018 * 1.08 * steps))
    common = {"peak_rate": peak, "min_rate": peak / 10, "warmup_steps": warmup}
    cooldown = {"cooldown_start": round(0.84 * steps), "cooldown_steps": round(0.16 * steps)}
    hybrid = ScheduleConfig(kind="hybrid", decay_steps=round(1.08 * steps), **common)
    others = {
        "cosine": ScheduleConfig(kind="cosine", decay_steps=steps, **common),
        "inverse_sqrt": ScheduleConfig(kind="inverse_sqrt", **common),
        "wsd": ScheduleConfig(kind="wsd", **cooldown, **common),
    }

    target = average_lr(hybrid, steps)
    scaled = {name: with_average_lr(config, steps, target) for name, config in others.items()}
    return {"hybrid": hybrid} | scaled


def branches(steps: int) -> dict[str, ScheduleConfig]:
    """The hybrid schedule with a linear cooldown to 0 from two different steps, as long
    as 16% of the run each.
    """
    hybrid, length = shapes(steps)["hybrid"], round(0.16 * steps)
    return {
        f"cooldown from {start}": hybrid.replace(cooldown_start=start, cooldown_steps=length)
        for start in (steps // 2, steps - length)
    }


def wsd_trunk(steps: int) -> ScheduleConfig:
    """The schedule that WSD is a branch of: its constant rate throughout."""
    wsd = shapes(steps)["wsd"]
    return wsd.replace(kind="constant", cooldown_start=None, cooldown_steps=None)


def overrides(config: ScheduleConfig) -> dict[str, object]:
    """A schedule as overrides of a run."""
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    return {f"schedule__{name}": value for name, value in fields.items()}


def main() -> None:
    """Run everything and write the record."""
    options = parse_options(__doc__, steps=400, seeds=3)
    steps, seeds = options.steps, options.seeds
    started = time.perf_counter()
    leaving = branches(steps)
    schedules = shapes(steps) | leaving | {"wsd trunk": wsd_trunk(steps)}
    ends = {
        name: (config.cooldown_start or 0) + (config.cooldown_steps or 0)
        for name, config in leaving.items()
    }

    runs = {}
    for name, config in schedules.items():
        last = ends.get(name, steps)
        validate_at = {*range(steps // 6, last + 1, steps // 6), last}
        if name == "hybrid":
            validate_at |= set(ends.values())
        changes = overrides(config)
        runs[name] = [
            train_toy(last, validate_at, **changes, train__seed=seed, data__seed=seed)
            for seed in range(seeds)
        ]

    command = f"python book/experiments/schedules.py --steps {steps} --seeds {seeds}"
    save_record(OUT, command, {"steps": steps, "runs": runs}, time.perf_counter() - started)
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
