"""Experiments too long for a page.

A script runs one and stores its results as small JSON, with where they came from. The
chapter plots them.
"""

import datetime
import platform
from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import DataError
from slm2_minimal.files import read_json, write_json
from slm2_minimal.train.folder import commit


def save_record(path: str | Path, command: str, results: Any, seconds: float) -> None:
    """Write `results` with their origin; `command` makes them again, in `seconds`."""
    machine = platform.machine()
    if machine == "x86_64":
        machine = f"{torch.get_num_threads()} x86-64 threads"
    record = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "commit": commit() or "unknown",
        "machine": machine,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "seconds": round(seconds),
        "results": results,
    }
    write_json(Path(path), record)


def load_record(path: str | Path) -> dict[str, Any]:
    """A record that `save_record` wrote. Raises DataError where there is none."""
    try:
        record: dict[str, Any] = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"record = {str(path)!r}: cannot be read ({error}); run the script that makes it"
        ) from None
    return record


def provenance(record: dict[str, Any]) -> Any:
    """A line of Markdown that says where a recorded result comes from."""
    from IPython.display import Markdown

    seconds = record["seconds"]
    took = f"{seconds} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return Markdown(
        f"*Recorded* on {record['date']} at commit `{record['commit']}`: {record['machine']}"
        f" ({record['capability']}, {record['device']}), torch {record['torch']}, {took} in all."
        f" Make it again with `{record['command']}`."
    )


def released_weights(path: str | Path) -> Any:
    """Markdown of what `make check-released` found, or that nobody has run it here."""
    from IPython.display import Markdown

    record = load_record(path) if Path(path).exists() else None
    if record is None or record["results"]["small"]:
        return Markdown(
            "*Not yet run* here: `make check-released` fetches the released weights and holds them"
            " against transformers."
        )

    lines = ["| released model | checks passed | failed | bits per byte |", "|---|---|---|---|"]
    for name in ("base", "zephyr"):
        found = record["results"][name]
        failed = [check["check"] for check in found["checks"] if not check["passed"]]
        passed = f"{len(found['checks']) - len(failed)} of {len(found['checks'])}"
        bits = ", ".join(f"{key} {value:.2f}" for key, value in found["bits_per_byte"].items())
        lines.append(f"| {found['source']} | {passed} | {', '.join(failed) or 'none'} | {bits} |")
    return Markdown("\n".join([*lines, "", provenance(record).data]))
