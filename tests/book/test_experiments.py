"""The scripts behind the recorded results: each record names one that is there, and
what the stability runs measure is what they say.
"""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest

from book import notebooks
from slm2_minimal.train.trainer import TrainingError

BOOK = Path(notebooks.__file__).parent


@pytest.fixture
def stability(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as Python runs it: with its own folder first on the path. Its
    neighbours have common names, so they are forgotten.
    """
    monkeypatch.syspath_prepend(str(BOOK / "experiments"))
    before = set(sys.modules)
    yield importlib.import_module("stability")
    for name in {"stability", "common", "mixture"} - before:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "path", sorted((BOOK / "recorded").glob("*.json")), ids=lambda path: path.stem
)
def test_a_record_names_a_script_that_is_there(path: Path) -> None:
    python, script, *_ = json.loads(path.read_text())["command"].split()
    assert python == "python"
    assert (BOOK.parent / script).is_file()


def test_a_spike_is_the_largest_rise_above_the_recent_mean(stability: ModuleType) -> None:
    assert stability.spike([5.0, 4.0, 6.0, 5.0]) == 1.5  # 6 above the mean of 5 and 4
    assert stability.spike([5.0, 4.0, 3.0]) == -1.0
    assert stability.spike([9.0] + [1.0] * 20 + [4.0]) == 3.0  # the 9 is 21 steps back
    assert stability.spike([7.0, 10.0, 5.0, 5.0]) == 3.0  # a blow-up in the first steps counts


def test_pairs_differ_in_the_biases_of_the_norms_only(
    stability: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves, train_toy = [], stability.train_toy

    def listen(*arguments: Any, **overrides: Any) -> dict[str, Any]:
        curves.append(train_toy(*arguments, **overrides))
        return curves[-1]

    monkeypatch.setattr(stability, "train_toy", listen)
    for bias in (True, False):
        found = stability.measure(7, 0.01, bias, seed=0)
        assert found["loss"] == curves[-1]["validation"][7]["en"]
        assert found["grad_norm"] > median(curves[-1]["grad_norms"])
    with_bias, without = (curve["losses"] for curve in curves)
    assert with_bias[0] == without[0]
    assert with_bias[1] != without[1]


def test_a_run_that_comes_to_no_end_has_diverged(
    stability: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrainingError("not finite")

    monkeypatch.setattr(stability, "train_toy", fail)
    assert set(stability.measure(3, 0.01, True, seed=0).values()) == {math.inf}
