"""The learning rate as a pure function of the step (report section 3.2).

Nothing here has state: resuming, branching a cooldown from any step, or plotting a
million steps ahead all ask the same function. Steps count from 0 and the optimizer's
first update is step 0.
"""

import math

from slm2_minimal.config import ScheduleConfig


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """The rate of update `step`: warm-up, then the schedule's shape, then, where one is
    configured, a linear cooldown to 0.

    Warm-up is peak_rate * (step + 1) / warmup_steps for step < warmup_steps, so that no
    update is made with a rate of
    0. The cooldown starts from whatever rate its first step would have had, and from
    its end on the rate is 0.

    Raises:
        ValueError: the step is negative.
    """
    if step < 0:
        raise ValueError(f"step = {step}: steps count from 0")
    if (
        config.cooldown_start is None
        or config.cooldown_steps is None
        or step < config.cooldown_start
    ):
        return _before_cooldown(step, config)
    left = 1 - (step - config.cooldown_start) / config.cooldown_steps
    return _before_cooldown(config.cooldown_start, config) * max(left, 0.0)


def hybrid_constants(config: ScheduleConfig) -> tuple[float, float]:
    """(alpha, beta) of alpha / sqrt(step + beta), solved so that value and slope meet
    the cosine's at a quarter of its period.

    With N = decay_steps, M = peak_rate and m = min_rate, the cosine m + (M - m)/2
    (cos(2 pi i / N) + 1) has at i = N/4 the value (M + m)/2 and the slope -pi (M - m) /
    N. A curve alpha (i + beta)^(-1/2) has slope -value / (2 (i + beta)); hence N/4 +
    beta = N (M + m) / (4 pi (M - m)) and alpha = (M + m)/2 * sqrt(N/4 + beta).
    """
    period, peak, low = config.decay_steps, config.peak_rate, config.min_rate
    shifted = period * (peak + low) / (4 * math.pi * (peak - low))
    return (peak + low) / 2 * math.sqrt(shifted), shifted - period / 4


def average_rate(config: ScheduleConfig, steps: int) -> float:
    """The mean rate of updates 0 .. steps - 1: what two schedules should share before
    they are compared.
    """
    return math.fsum(learning_rate(step, config) for step in range(steps)) / steps


def with_average_rate(config: ScheduleConfig, steps: int, target: float) -> ScheduleConfig:
    """The same shape with peak and minimum scaled so that the mean over `steps` is
    `target`; every shape is linear in the two.
    """
    factor = target / average_rate(config, steps)
    return config.replace(peak_rate=config.peak_rate * factor, min_rate=config.min_rate * factor)


def _before_cooldown(step: int, config: ScheduleConfig) -> float:
    peak, low = config.peak_rate, config.min_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.kind == "hybrid":
        if step <= config.decay_steps / 4:
            return low + (peak - low) / 2 * (math.cos(2 * math.pi * step / config.decay_steps) + 1)
        alpha, beta = hybrid_constants(config)
        return alpha / math.sqrt(step + beta)
    if config.kind == "cosine":
        progress = min(step / config.decay_steps, 1.0)
        return low + (peak - low) / 2 * (math.cos(math.pi * progress) + 1)
    if config.kind == "inverse_sqrt":
        return peak * math.sqrt(config.warmup_steps / max(step, 1))
    return peak  # wsd and constant
