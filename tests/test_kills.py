"""Commands killed by SIGKILL, again and again, and started again: the end is that of a
run that nothing disturbed.

A third of the kills falls at any moment, a third while the command is at work, a third
into what must be whole or absent: the writing of a checkpoint, the publishing of
prepared text. `KILLS=40 pytest -m slow -s tests/test_kills.py` kills each command forty
times and says how many kills fell inside of a write.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slm2_minimal.cli import main
from slm2_minimal.config.keys import toml_value
from slm2_minimal.distributed import checkpoint
from slm2_minimal.files import sha256
from tests.conftest import OVERRIDES

KILLS = int(os.environ.get("KILLS", "6"))  # of each command
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


class Process:
    """A command of `slm2` in a fork of this process, which has imported everything."""

    def __init__(self, words: list[str]) -> None:
        torch.set_num_threads(1)  # a fork has no others
        end, begin = os.pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_command_line, args=(words, begin))
        self._process.start()
        os.close(begin)
        self.out = os.fdopen(end)
        self.pid = self._process.pid or 0
        self.is_alive = self._process.is_alive

    def end(self) -> str:
        """Wait for it, and return what it has said since."""
        said = self.out.read()
        self._process.join()
        self.out.close()
        return said

    @property
    def code(self) -> int | None:
        return self._process.exitcode


def _command_line(words: list[str], out: int) -> None:
    for stream in (1, 2):
        os.dup2(out, stream)
    os.close(out)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    code = main(words)
    sys.stdout.flush()
    os._exit(code)


@dataclass
class Campaign:
    """One command, and what is needed to kill it at chosen moments."""

    words: list[str]  # of `slm2`, without the folder to write
    key: str  # that names this folder
    at_work: str  # a line of the command once it is at work
    writes: Callable[[Path], bool]  # whether something is being written that must be whole
    result: Callable[[Path], Any]  # what two runs must have in common
    check: Callable[[Path], object]  # asked after every kill
    victims: str = ""  # of the command's processes; where they are killed, it goes on itself

    def start(self, folder: Path) -> "Process":
        return Process([*self.words, f"--{self.key}={toml_value(str(folder))}"])

    def run(self, folder: Path) -> float:
        """To the end; returns how long that took."""
        began = time.monotonic()
        process = self.start(folder)
        out = process.end()
        assert process.code == 0, out
        return time.monotonic() - began

    def killed(self, folder: Path, kills: int) -> None:
        """Kill it so often, and hold every end that it comes to against an unbroken
        run's.
        """
        takes = self.run(folder.with_name("whole"))
        whole = self.result(folder.with_name("whole"))
        moments, inside, ends = random.Random(kills), 0, 0
        process = self.start(folder)
        for number in range(kills):
            while not self._wait(process, number % 3, moments, folder, takes):
                out = process.end()
                assert "Traceback" not in out, out
                if process.code == 0:  # sooner than it was to be killed
                    assert self.result(folder) == whole
                    shutil.rmtree(folder)
                    ends += 1
                else:  # torchrun has started the processes often enough
                    assert self.victims, out
                process = self.start(folder)

            # One of its processes, or all of them
            inside += self.writes(folder)
            family = _family(process.pid)
            some = [pid for pid in family if self.victims and self.victims in _command(pid)]
            alone = bool(some) and number % 2 == 0
            for pid in some[-1:] if alone else family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.check(folder)
            if not alone:
                process.end()
                process = self.start(folder)

        out = process.end()
        if process.code:
            self.run(folder)
        assert self.result(folder) == whole, out
        print(f"\nslm2 {self.words[0]}: {kills} kills, {inside} inside of a write, {ends + 1} ends")
        assert inside >= kills // 6

    def _wait(
        self, process: "Process", aim: int, moments: random.Random, folder: Path, takes: float
    ) -> bool:
        """Until the moment has come; false where the command ends before."""
        if aim == 0:
            time.sleep(moments.uniform(0, takes))
            return process.is_alive()

        if not any(re.match(self.at_work, line) for line in process.out):
            return False
        if aim == 1:
            time.sleep(moments.uniform(0, 1))
            return process.is_alive()
        while not self.writes(folder):
            if not process.is_alive():
                return False
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        return process.is_alive()


def _family(pid: int) -> list[int]:
    """A process and all that stem from it, parents first."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


# Training


def _run_result(run: Path) -> Any:
    """Every record but for its times, the best, and the last checkpoint's tensors.

    What a run says at its end it says again where it had ended.
    """
    same = ("step", "kind", "loss", "lr", "grad_norm", "data_position", "mean", "text", "unigram")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k in same} for line in lines]
    records = [record for i, record in enumerate(records) if record not in records[:i]]
    last = checkpoint.steps(run)[-1]
    tensors = {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in last.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    return records, json.loads((run / "best.json").read_text()), last.name, tensors


def _is_saving(run: Path) -> bool:
    return any(run.glob(".step-*.part"))


def _all_whole(run: Path) -> None:
    for folder in checkpoint.steps(run):
        checkpoint.read_state(folder)


def _training(command: list[str], victims: str = "", **changes: Any) -> Campaign:
    keys = OVERRIDES | {
        "train.steps": 60,
        "train.log_every": 1,
        "train.save_every": 4,
        "train.validate_every": 20,
        "data.sources": {
            name: source | {"max_epochs": 1e9} for name, source in OVERRIDES["data.sources"].items()
        },
        "schedule.cooldown_start": 40,
        "schedule.cooldown_steps": 20,
        "data.workers": 1,
        **changes,
    }
    words = [f"--{key}={toml_value(value)}" for key, value in keys.items()]
    return Campaign(
        [*command, *words],
        "train.output_dir",
        "step ",
        _is_saving,
        _run_result,
        _all_whole,
        victims,
    )


def test_train(tmp_path: Path) -> None:
    _training(["train", "tiny"]).killed(tmp_path / "run", KILLS)


def test_fine_tuning(tmp_path: Path) -> None:
    """On conversations, from the weights of a run."""
    base = tmp_path / "base"
    words = [f"--{key}={toml_value(value)}" for key, value in OVERRIDES.items()]
    assert main(["train", "tiny", *words, f"--train.output_dir={base}"]) == 0
    sources = {"own": {"format": "chat", "languages": ["en", "de"], "max_epochs": 1e9}}
    start = {"data.sources": sources, "data.seq_len": 64, "train.init_from": str(base)}
    _training(["train", "tiny"], **start).killed(tmp_path / "run", KILLS)


def test_launch(tmp_path: Path) -> None:
    """Two processes. Half of the kills are of one of them: torchrun starts both
    again.
    """
    ranks = _training(["launch", "tiny", "--gpus", "2"], victims="slm2_minimal train")
    ranks.killed(tmp_path / "run", KILLS)


# Preparing


def test_prepare(tmp_path: Path) -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(5_000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(50, 600))) for _ in range(2_500)]
    texts += draw.sample(texts, 200)
    for name, part in (("one", texts[:1_500]), ("two", texts[1_500:])):
        lines = [json.dumps({"id": f"{name}-{i}", "text": text}) for i, text in enumerate(part)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"text": texts[0][100:400]}))

    keys = {
        "data.sources": {
            name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("one", "two")
        },
        "prepare.benchmarks": {"quiz": str(tmp_path / "quiz.jsonl")},
        "prepare.shard_megabytes": 1,
        "prepare.workers": 2,
    }
    options = [f"--{key}={toml_value(value)}" for key, value in keys.items()]
    campaign = Campaign(
        ["prepare", "tiny", *options], "data.prepared", "(read|keys|duplicates|tokenise) ",
        _is_publishing, _folder_result, _is_complete,
    )  # fmt: skip
    campaign.killed(tmp_path / "prepared", KILLS)


def _is_publishing(folder: Path) -> bool:
    names = os.listdir(folder) if folder.exists() else []
    begun = any(name.startswith("token_counts") for name in names)
    return begun and "manifest.json" not in names


def _folder_result(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _is_complete(folder: Path) -> None:
    """Where there is a manifest, all that it names is there, as it says."""
    if not (folder / "manifest.json").exists():
        return
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [shard for of_source in manifest["sources"].values() for shard in of_source]
    for shard in [*shards, *manifest["held_out"].values()]:
        assert (folder / f"{shard['name']}.tokens.npy").exists()
    assert manifest["token_counts"] == sha256(folder / "token_counts.safetensors")
