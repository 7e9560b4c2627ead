"""The command as a cluster starts it: torchrun, a rank that dies, elastic restart,
SIGTERM, and SIGKILL at any moment.
"""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slm2_minimal.config import RunConfig
from slm2_minimal.distributed import checkpoint
from slm2_minimal.distributed.world import World
from slm2_minimal.train.trainer import Trainer

Make = Callable[..., RunConfig]
ROOT = Path(__file__).parents[2]
QUIET = {
    "train.prompts": [],
    "train.validate_every": 1000,
    "train.log_every": 1,
    "train.keep_checkpoints": 3,
}


def torchrun(
    config: RunConfig, *options: str, size: int = 2, code: str = ""
) -> subprocess.Popen[str]:
    """A script under torchrun that does what `slm2 train` does, with `code` run first
    in every rank.
    """
    run = Path(config.train.output_dir)
    script = run.with_suffix(".py")
    script.write_text(
        f"import json\n{code}\nfrom slm2_minimal.config import RunConfig\nfrom"
        " slm2_minimal.train.trainer import Trainer\nfrom slm2_minimal.distributed.world import"
        " World\nfrom slm2_minimal.terminal import log_to_terminal\nlog_to_terminal()\n"
        "with World.joined('cpu') as world:\n   "
        f" Trainer.from_config(RunConfig.from_dict(json.loads({json.dumps(config.to_dict())!r})),"
        " world).run()\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={size}",
        *options,
        str(script),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:  # noqa: UP028  `yield from` would close it with the first loop that ends early
        yield line


def losses(config: RunConfig) -> dict[int, float]:
    text = (Path(config.train.output_dir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in text]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def tensors(config: RunConfig) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, part by part."""
    folder = checkpoint.steps(Path(config.train.output_dir))[-1]
    return {
        f"{path.name} {name}": value
        for path in folder.glob("*.safetensors")
        for name, value in load_file(path).items()
    }


def no_rank_is_left(config: RunConfig) -> bool:
    """No process has the run's script on its command line."""
    script = str(Path(config.train.output_dir).with_suffix(".py")).encode()
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes())
        except OSError:
            continue
    return not any(script in command for command in commands)


def test_a_rank_that_dies_ends_the_job_within_a_minute(small_run: Make) -> None:
    """By SIGKILL, as the kernel does when memory is short; the others are told, and
    nothing is left.
    """
    config = small_run(
        **QUIET,
        **{
            "train.steps": 100_000,
            "schedule.cooldown_start": None,
            "schedule.cooldown_steps": None,
            "data.sources.en.max_epochs": 1e9,
            "data.sources.math.max_epochs": 1e9,
        },
    )
    dies = "import os, signal, threading\nif os.environ['RANK'] == '1':\n"
    dies += "    threading.Timer(6, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()"
    process = torchrun(config, code=dies)
    seen, died = [], 0.0
    for line in lines(process):
        seen.append(line)
        died = died or (time.monotonic() if "failed (exitcode: -9) local_rank: 1" in line else 0.0)
    assert process.wait(timeout=60) != 0
    assert died
    assert time.monotonic() - died < 60
    assert "Signal 9 (SIGKILL) received by PID" in "".join(seen)
    assert no_rank_is_left(config)


def run(world: World, tables: dict[str, Any]) -> None:
    """The same without torchrun."""
    Trainer.from_config(RunConfig.from_dict(tables), world).run()


def test_elastic_restart_goes_on_by_itself(ranks: Any, small_run: Make) -> None:
    """A rank dies once after step 12; torchrun starts both again, and the end is
    bitwise that of an unbroken run.
    """
    # That of step 5 is there when the one of step 10 is begun.
    straight, broken = (
        small_run(name, **QUIET | {"train.save_every": 5}) for name in ("straight", "broken")
    )
    ranks(2, run, straight.to_dict())
    dies = (
        "import os, signal\nfrom slm2_minimal.train import trainer as t\nstep ="
        " t.Trainer.step\ndef once(self):\n    if self.state.step == 12 and os.environ['RANK'] =="
        " '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n        os.kill(os.getpid(),"
        " signal.SIGKILL)\n    return step(self)\nt.Trainer.step = once"
    )
    process = torchrun(broken, "--max-restarts=1", code=dies)
    out = "".join(lines(process))
    assert process.wait(timeout=60) == 0, out
    assert "going on after step" in out
    assert losses(straight) == losses(broken)
    one, two = tensors(straight), tensors(broken)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(
    ranks: Any, small_run: Make
) -> None:
    changes = QUIET | {"train.steps": 60, "train.save_every": 1000}
    straight, stopped = small_run("straight", **changes), small_run("stopped", **changes)
    ranks(2, run, straight.to_dict())
    process = torchrun(stopped)
    seen = []
    for line in lines(process):
        seen.append(line)
        if line.startswith("step"):
            process.send_signal(signal.SIGTERM)
            break
    seen += lines(process)
    process.wait(timeout=60)
    out = "".join(seen)
    assert "the same command goes on from there" in out
    assert out.count("SIGTERM: saving after this step") == 2, "once a rank"
    [folder] = checkpoint.steps(Path(stopped.train.output_dir))
    assert 0 < int(folder.name[-8:]) < 60
    ranks(2, run, stopped.to_dict())
    assert losses(straight) == losses(stopped)


# SIGKILL at any moment


def _train(config: RunConfig, slow: float) -> None:
    """A run whose checkpoint files are written slowly, so that many kills fall inside
    of a write.
    """
    torch.set_num_threads(1)
    sign, publish = checkpoint.Checkpointer.sign, checkpoint.Checkpointer.publish
    for name, real in (("sign", sign), ("publish", publish)):

        def later(self: Any, *arguments: Any, real: Callable[..., None] = real) -> None:
            time.sleep(slow)
            real(self, *arguments)

        setattr(checkpoint.Checkpointer, name, later)
    Trainer.from_config(config).run()


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments(small_run: Make) -> None:
    """Once each run has begun to write. What is found is always a complete checkpoint;
    the end is bitwise the unbroken run's.
    """
    changes = QUIET | {
        "train.steps": 400,
        "train.save_every": 2,
        "schedule.cooldown_start": 320,
        "schedule.cooldown_steps": 80,
        "data.sources.en.max_epochs": 1e9,
        "data.sources.math.max_epochs": 1e9,
    }
    straight, killed = small_run("straight", **changes), small_run("killed", **changes)
    context = multiprocessing.get_context(
        "fork"
    )  # a fresh process in a moment: this one has one thread and has imported torch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    moments, run, inside, kills = random.Random(7), Path(killed.train.output_dir), 0, 0
    process = context.Process(target=_train, args=(killed, 0.02))
    process.start()
    while kills < 20:
        before, deadline = checkpoint.steps(run), time.monotonic() + 60
        while checkpoint.steps(run) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        process.join(moments.uniform(0.0, 0.15))
        assert process.is_alive(), "the run ended before it was killed often enough"
        process.kill()
        process.join()
        kills += 1
        inside += any(run.glob(".step-*.part"))
        for folder in checkpoint.steps(run):
            checkpoint.read_state(folder)
        process = context.Process(target=_train, args=(killed, 0.02))
        process.start()
    process.join(120)
    assert process.exitcode == 0
    assert inside >= 3, "some kills fell inside of a write"
    Trainer.from_config(straight).run()
    torch.set_num_threads(threads)
    assert losses(straight) == losses(killed)
    one, two = tensors(straight), tensors(killed)
    assert all(torch.equal(one[name], two[name]) for name in one)
