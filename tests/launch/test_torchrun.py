"""torchrun as `slm2 launch` starts it: how processes that fail, refuse or are stopped
end it.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

WORKER = """\
import os, pathlib, signal, sys, time
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with open("starts", "a") as file:
    print(attempt, file=file)
{}
"""


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    """The processes that a test starts; none outlives it."""
    started = list["subprocess.Popen[str]"]()
    yield started
    for process in started:
        process.kill()
        process.wait()


def start(folder: Path, worker: str) -> "subprocess.Popen[str]":
    (folder / "worker.py").write_text(WORKER.format(worker))
    command = [sys.executable, "-m", "slm2_minimal.launch.torchrun", "--standalone"]
    command += ["--nproc-per-node=1", "--max-restarts=2", "worker.py"]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("worker", "code", "starts", "said"),
    [
        ("sys.exit(2)", 2, 1, []),
        ("sys.exit(3 * (attempt == 0))", 0, 2, ["rank 0 ended with 3", "starting again"]),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            1,
            3,
            ["rank 0 ended with SIGKILL", "starting again"] * 2 + ["rank 0 ended with SIGKILL"],
        ),
    ],
    ids=["a user's error is final", "a failure is not", "three times is enough"],
)
def test_how_it_ends(
    torchrun: list["subprocess.Popen[str]"],
    tmp_path: Path,
    worker: str,
    code: int,
    starts: int,
    said: list[str],
) -> None:
    torchrun.append(start(tmp_path, worker))
    _, errors = torchrun[0].communicate()
    assert torchrun[0].returncode == code
    assert len((tmp_path / "starts").read_text().split()) == starts
    lines = errors.splitlines()
    assert len(lines) == len(said), errors
    assert all(line.startswith(f"slm2: {part}") for line, part in zip(lines, said, strict=True))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_it_without_a_traceback(
    torchrun: list["subprocess.Popen[str]"], tmp_path: Path, times: int
) -> None:
    """Once: the process has its time to save. Again: it ends at once."""
    saves = "time.sleep(1); print('saved', file=open('saved', 'w')); sys.exit()"
    note = "open('asked', 'w').close(); time.sleep(600)" if times == 2 else saves
    (tmp_path / "note.py").write_text(f"import sys, time\ndef note(number, frame):\n    {note}\n")
    worker = "import note; signal.signal(signal.SIGINT, note.note)\n"
    worker += "open('ready', 'w').close(); time.sleep(600)"
    torchrun.append(start(tmp_path, worker))
    for name in ["ready", "asked"][:times]:
        while not (tmp_path / name).exists():
            assert torchrun[0].poll() is None
            time.sleep(0.05)
        torchrun[0].send_signal(signal.SIGINT)
    _, errors = torchrun[0].communicate()
    assert torchrun[0].returncode == 128 + signal.SIGINT
    assert errors == ""
    assert (tmp_path / "saved").exists() == (times == 1)
