"""The schedule against the report's table, and the comparisons' shapes."""

import math

import pytest

from slm2_minimal.config import ConfigError, ScheduleConfig
from slm2_minimal.train.schedule import average_lr, hybrid_constants, learning_rate, with_average_lr

FULL = ScheduleConfig.preset("stablelm-2-1_6b")
PLAIN = FULL.replace(cooldown_start=None, cooldown_steps=None)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (9_719, 1e-3),
        (9_720, 9.971e-4),
        (135_000, 5.5e-4),
        (200_000, 3.677e-4),
        (300_000, 2.703e-4),
        (420_000, 2.170e-4),
        (500_000, 0.0),
    ],
)
def test_table(step: int, rate: float) -> None:
    assert abs(learning_rate(step, FULL) - rate) < 1e-7


def test_constants_as_derived() -> None:
    alpha, beta = hybrid_constants(FULL)
    assert abs(alpha - 0.1260462) < 5e-8
    assert abs(beta + 82_478.87) < 5e-3


def test_never_zero_before_the_end() -> None:
    assert learning_rate(0, FULL) == pytest.approx(1e-3 / 9_720)
    assert learning_rate(499_999, FULL) > 0
    assert learning_rate(0, PLAIN.replace(warmup_steps=0)) == 1e-3


def test_value_and_slope_are_continuous_at_a_quarter() -> None:
    quarter = PLAIN.decay_steps // 4
    left, here, right = (learning_rate(quarter + d, PLAIN) for d in (-1, 0, 1))
    assert math.isclose(here, 5.5e-4, rel_tol=1e-12)
    slope = -math.pi * (1e-3 - 1e-4) / PLAIN.decay_steps
    assert math.isclose(here - left, slope, rel_tol=1e-4)
    assert math.isclose(right - here, slope, rel_tol=1e-4)


def test_cooldown_is_linear_and_starts_where_it_branches() -> None:
    for start in (100_000, 420_000):
        config = PLAIN.replace(cooldown_start=start, cooldown_steps=80_000)
        top = learning_rate(start, PLAIN)
        assert learning_rate(start, config) == top
        assert learning_rate(start + 20_000, config) == pytest.approx(0.75 * top)
        assert learning_rate(start + 80_000, config) == 0 == learning_rate(start + 90_000, config)
        assert all(
            learning_rate(step, config) == learning_rate(step, PLAIN)
            for step in (0, 50_000, start - 1)
        )


def test_comparison_shapes() -> None:
    cosine = PLAIN.replace(kind="cosine", decay_steps=100_000)
    assert learning_rate(50_000, cosine) == pytest.approx(5.5e-4)
    assert (
        learning_rate(100_000, cosine) == learning_rate(200_000, cosine) == pytest.approx(1e-4)
    )  # the minimum is reached and held
    root = PLAIN.replace(kind="inverse_sqrt")
    assert learning_rate(4 * 9_720, root) == pytest.approx(5e-4)
    assert learning_rate(9_719, root) == learning_rate(9_720, root) == 1e-3
    constant = PLAIN.replace(kind="constant")
    assert {learning_rate(step, constant) for step in (9_720, 10**6)} == {1e-3}
    stable = FULL.replace(kind="wsd")
    assert learning_rate(419_999, stable) == learning_rate(420_000, stable) == 1e-3
    assert learning_rate(460_000, stable) == pytest.approx(5e-4)


@pytest.mark.parametrize("kind", ["hybrid", "cosine", "inverse_sqrt", "wsd", "constant"])
def test_average_lrs_can_be_matched(kind: str) -> None:
    config = FULL.replace(
        kind=kind, warmup_steps=18, decay_steps=1080, cooldown_start=840, cooldown_steps=160
    )
    matched = with_average_lr(config, 1000, target=4e-4)
    assert average_lr(matched, 1000) == pytest.approx(4e-4, rel=1e-9)
    assert sum(learning_rate(step, matched) for step in range(1000)) / 1000 == pytest.approx(
        4e-4, rel=1e-9
    )


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="step = -1"):
        learning_rate(-1, FULL)
    for changes in (
        {"min_rate": 1e-3},
        {"cooldown_steps": None},
        {"warmup_steps": 0, "kind": "inverse_sqrt"},
    ):
        with pytest.raises(ConfigError, match=r"schedule\."):
            FULL.replace(**changes)
    with pytest.raises(ConfigError, match="wsd"):
        PLAIN.replace(kind="wsd")
