"""The learning rate as a pure function of the step (report section 2; the shape is
confirmed, that the step counts from 0 and not from the end of warm-up is ours).

Nothing here has state: resuming, branching a cooldown from any step, or plotting a
million steps ahead all ask the same function. The optimizer's first update is step 0.
"""

import math

from slm2_minimal.config import ScheduleConfig


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """The learning rate of update `step`, counted from 0.

    First warm-up, peak_rate * (step + 1) / warmup_steps: no update has a rate of 0.
    Then the schedule's shape. Then, where one is configured, a linear cooldown. It
    starts from whatever rate its first step would have had, and ends at 0 for good.

    Raises:
        ValueError: the step is negative.
    """
    if step < 0:
        raise ValueError(f"step = {step}: steps count from 0")
    start, length = config.cooldown_start, config.cooldown_steps
    if start is None or length is None or step < start:
        return before_cooldown(step, config)

    remaining = 1 - (step - start) / length
    return before_cooldown(start, config) * max(remaining, 0.0)


def before_cooldown(step: int, config: ScheduleConfig) -> float:
    """Warm-up and the schedule's shape."""
    peak = config.peak_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps

    if config.kind == "hybrid":
        if step <= config.decay_steps / 4:
            return cosine(2 * math.pi * step / config.decay_steps, config)
        alpha, beta = hybrid_constants(config)
        return alpha / math.sqrt(step + beta)
    if config.kind == "cosine":
        progress = min(step / config.decay_steps, 1.0)
        return cosine(math.pi * progress, config)
    if config.kind == "inverse_sqrt":
        return peak * math.sqrt(config.warmup_steps / max(step, 1))
    return peak  # wsd and constant


def cosine(angle: float, config: ScheduleConfig) -> float:
    """From `peak_rate` at the angle 0 to `min_rate` at pi."""
    half = (config.peak_rate - config.min_rate) / 2
    return config.min_rate + half * (math.cos(angle) + 1)


def hybrid_constants(config: ScheduleConfig) -> tuple[float, float]:
    """(alpha, beta) of alpha / sqrt(step + beta), which takes over from the cosine.

    Value and slope meet at a quarter of the cosine's period. With N = decay_steps,
    M = peak_rate and m = min_rate, the cosine m + (M - m)/2 (cos(2 pi i / N) + 1)
    has at i = N/4 the value (M + m)/2 and the slope -pi (M - m) / N. A curve
    alpha (i + beta)^(-1/2) has the slope -value / (2 (i + beta)). Hence
    N/4 + beta = N (M + m) / (4 pi (M - m)) and alpha = (M + m)/2 * sqrt(N/4 + beta).
    """
    period, peak, low = config.decay_steps, config.peak_rate, config.min_rate
    shifted = period * (peak + low) / (4 * math.pi * (peak - low))
    alpha = (peak + low) / 2 * math.sqrt(shifted)
    return alpha, shifted - period / 4


def average_lr(config: ScheduleConfig, steps: int) -> float:
    """The mean over updates 0 .. steps - 1: what two schedules should share before they
    are compared.
    """
    return math.fsum(learning_rate(step, config) for step in range(steps)) / steps


def with_average_lr(config: ScheduleConfig, steps: int, target: float) -> ScheduleConfig:
    """The same shape, scaled so that its mean over `steps` is `target`.

    Every shape is linear in `peak_rate` and `min_rate`, so one factor does it.
    """
    factor = target / average_lr(config, steps)
    return config.replace(peak_rate=config.peak_rate * factor, min_rate=config.min_rate * factor)
