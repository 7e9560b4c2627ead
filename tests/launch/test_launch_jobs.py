"""The SLURM script run here, beside programs in the place of SLURM's own."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slm2_minimal.config import RunConfig
from slm2_minimal.distributed import checkpoint
from slm2_minimal.launch.check import check
from slm2_minimal.launch.launch import launch
from slm2_minimal.launch.scripts import scripts
from slm2_minimal.prepare.run import prepare

Start = Callable[[Path], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(slurm: Path) -> Iterator[Start]:
    """`start(folder)` runs the folder's slurm.sh in a group of its own, as SLURM starts
    a job; nothing of it outlives the test.
    """
    jobs = list["subprocess.Popen[bytes]"]()

    def begin(folder: Path) -> "subprocess.Popen[bytes]":
        with (folder / "log").open("ab") as log:
            jobs.append(
                subprocess.Popen(
                    ["bash", str(folder / "slurm.sh")],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            )
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.poll() is None:
            for task in slurm.with_name("tasks").read_text().split():
                os.kill(int(task), signal.SIGTERM)  # torchrun ends its processes
            time.sleep(2)
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def job(folder: Path, agent: str) -> Path:
    """The script of a run of two nodes, with `agent` in the place of torchrun; the
    folder of both.
    """
    texts = scripts(
        RunConfig.load("tiny", {"train.output_dir": str(folder / "run")}), ["tiny"], 16, folder
    )
    (folder / "slurm.sh").write_text(texts["slurm.sh"])
    (folder / "torchrun.sh").write_text(agent)
    return folder


@pytest.mark.parametrize("complete", [False, True])
def test_a_warned_job_saves_and_goes_back_into_the_queue(
    slurm: Path, start: Start, tmp_path: Path, complete: bool
) -> None:
    """The script waits for what takes its time; it does not come back where the last
    checkpoint is there.
    """
    last = tmp_path / "run" / "step-00001200"
    saving = (  # torchrun ends with 1 after a signal
        f"sleep 1; echo saved; {f'mkdir -p {last}' if complete else 'true'}; exit 1"
    )
    started = start(
        job(
            tmp_path,
            f"trap '{saving}' TERM\necho at $RENDEZVOUS; while true; do sleep 0.05; done\n",
        )
    )
    until(lambda: "at node1:20042" in (tmp_path / "log").read_text())
    started.send_signal(signal.SIGUSR1)
    assert started.wait(30) == 0
    assert (tmp_path / "log").read_text() == "at node1:20042\nsaved\n"
    told = slurm.read_text().splitlines()
    assert told == [
        "scontrol show hostnames node[1-2]",
        "scancel --signal=TERM 10042.0",
        *["scontrol requeue 10042"][: not complete],
    ]


@pytest.mark.parametrize(
    ("agent", "code"), [("exit 3", 3), ("exit 0", 0)], ids=["a failure", "stopped by hand"]
)
def test_a_job_that_was_not_warned_does_not_come_back(
    slurm: Path, start: Start, tmp_path: Path, agent: str, code: int
) -> None:
    assert start(job(tmp_path, agent)).wait(30) == code
    assert "requeue" not in slurm.read_text()


def test_a_cancelled_job_does_not_come_back(slurm: Path, start: Start, tmp_path: Path) -> None:
    started = start(job(tmp_path, "echo at work; sleep 60 & wait"))
    until(lambda: "at work" in (tmp_path / "log").read_text())
    os.killpg(started.pid, signal.SIGTERM)
    assert started.wait(30) == -signal.SIGTERM
    assert "requeue" not in slurm.read_text()


SMALL = """
[model]
vocab_size = 1024
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
bos_token_id = 0
eos_token_id = 0
[data]
tokenizer = "tiny"
seq_len = 32
validation_percent = 0
prepared = "my data"
sources = { math = { languages = ["math"], max_epochs = 99 } }
[train]
steps = STEPS
global_batch_tokens = 256
micro_batch_size = 4
device = "cpu"
dtype = "float32"
log_every = 1
output_dir = "my run"
"""


@pytest.mark.slow
def test_a_job_of_real_processes(
    slurm: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two nodes of one process, which meet here. Warned in the middle, they save and
    end. Taken from the queue again, the same job completes the run, though one process
    is killed: both are started again.
    """
    monkeypatch.chdir(tmp_path)
    for name, value in {"SLURM_JOB_ID": os.getpid(), "FIRST_NODE": "localhost", "TASKS": 2}.items():
        monkeypatch.setenv(name, str(value))
    steps = 400
    (tmp_path / "small run.toml").write_text(SMALL.replace("STEPS", str(steps)))
    words, run = (
        ["small run.toml", "--data.seed", "5"],
        RunConfig.load("small run.toml", {"data.seed": 5}),
    )
    prepare(run)
    launch(run, words, 2, gpus_per_node=1)
    assert slurm.read_text().splitlines() == ["sbatch my run/launch/slurm.sh"]
    folder = tmp_path / "my run" / "launch"
    started = start(folder)
    until(lambda: f" 20/{steps} |" in (folder / "log").read_text(), 120)
    started.send_signal(signal.SIGUSR1)
    assert started.wait(120) == 0
    assert slurm.read_text().splitlines()[-1] == f"scontrol requeue {os.getpid()}"
    (saved,) = checkpoint.steps(tmp_path / "my run")
    step = int(saved.name.removeprefix("step-"))
    assert 20 <= step < steps
    assert check(run, 2, gpus_per_node=1)[-1].endswith(
        f"goes on from my run/step-{step:08d}, after step {step} of {steps}"
    )
    again = start(folder)
    until(lambda: f"going on after step {step}" in (folder / "log").read_text(), 120)
    agent = slurm.with_name("tasks").read_text().split()[-1]
    (process,) = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    os.kill(int(process), signal.SIGKILL)
    assert again.wait(300) == 0
    assert (folder / "log").read_text().count(f"going on after step {step}") == 2
    assert (tmp_path / "my run" / f"step-{steps:08d}").exists()
    assert slurm.read_text().count("requeue") == 1
