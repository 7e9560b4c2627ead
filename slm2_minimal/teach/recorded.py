"""Experiments too long for a page: run once by a script, stored as small JSON with
where they came from, plotted by the chapter.
"""

import datetime
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import DataError


def save_record(path: str | Path, command: str, results: Any, seconds: float) -> None:
    """Write `results` with the machine, the date, the commit, the time it took, and the
    command that makes them again.
    """
    record = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": (
            f"{torch.get_num_threads()} x86-64 threads"
            if platform.machine() == "x86_64"
            else platform.machine()
        ),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "seconds": round(seconds),
        "results": results,
    }
    part = Path(path).with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def load_record(path: str | Path) -> dict[str, Any]:
    """A record that `save_record` wrote. Raises DataError where there is none."""
    try:
        record: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
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


def _commit() -> str:
    """The short hash of the checkout, with a plus sign where it has uncommitted
    changes; `unknown` outside git.
    """
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
