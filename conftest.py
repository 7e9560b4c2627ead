"""What every test run shares: a fixed environment, and for `pytest --nbval book/` a
comparison that forgives rounding and nothing else.

nbval compares outputs as text. Floating-point results differ in their last digits
between processors, so numbers with a decimal point are compared as numbers; every other
character must agree. Cells tagged `measured` (times, rates, memory) run and are not
compared.
"""

import math
import os
import re
from pathlib import Path

import pytest

from book.notebooks import ENVIRONMENT

ROOT = Path(__file__).parent
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

# A decimal number with the blanks before it, because a sign that comes or goes moves
# the columns of a printed array.
NUMBER = re.compile(r" *[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE][-+]?\d))(?:[eE][-+]?\d+)?")


def same_number(a: str, b: str) -> bool:
    """Equal to 0.1%, or one unit apart in the last printed place where that unit is at
    most 1% of the value.
    """
    x, y = float(a), float(b)
    if math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-6):
        return True
    unit = max(_last_place(a), _last_place(b))
    return abs(x - y) < 1.01 * unit and unit <= 0.01 * max(abs(x), abs(y))


def _last_place(number: str) -> float:
    digits, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def same_text(a: object, b: object) -> bool:
    """Whether two outputs are text that differs by rounding at most."""
    if not isinstance(a, str) or not isinstance(b, str) or NUMBER.sub("#", a) != NUMBER.sub("#", b):
        return False
    return all(map(same_number, NUMBER.findall(a), NUMBER.findall(b)))


def pytest_configure(config: pytest.Config) -> None:
    if not getattr(config.option, "nbval", False):
        return
    config.option.nbval_current_env = True
    config.option.nbval_sanitize_with = str(ROOT / "book" / "nbval_sanitize.cfg")
    import nbval.plugin

    nbval.plugin.metadata_tags["measured"] = ("check", False)
    exact = nbval.plugin.IPyNbCell.compare_outputs
    if hasattr(exact, "forgiving"):
        return

    def compare_outputs(self, test, ref, skip_compare=None):  # type: ignore[no-untyped-def]
        """What agrees up to rounding is made equal, then nbval compares as it always
        does.
        """
        for new, old in zip(test, ref, strict=False):
            if new.output_type != old.output_type:
                continue
            if same_text(new.get("text"), old.get("text")):
                new.text = old.text
            for kind, content in new.get("data", {}).items():
                if same_text(content, old.get("data", {}).get(kind)):
                    new.data[kind] = old.data[kind]
        return exact(self, test, ref, skip_compare)

    compare_outputs.forgiving = True  # type: ignore[attr-defined]
    nbval.plugin.IPyNbCell.compare_outputs = compare_outputs


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(
        collector, "skip_compare"
    ):  # pictures by another name: tables are also there as text/plain, which is compared
        collector.skip_compare += ("text/html", "image/svg+xml")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """nbval compares nothing where a cell has no execution count, so that an emptied
    notebook would pass.
    """
    cell = getattr(item, "cell", None)
    if (
        cell is not None
        and cell.source.strip()
        and cell.execution_count is None
        and not item.options["skip"]
    ):  # type: ignore[attr-defined]
        pytest.fail(
            "the stored cell was never executed: python book/notebooks.py run", pytrace=False
        )
