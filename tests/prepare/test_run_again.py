"""`slm2 prepare` stopped at any moment and started again: the same bytes in the end,
and nothing done twice.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.config import DataError
from slm2_minimal.prepare import publish
from slm2_minimal.prepare import run as module
from slm2_minimal.prepare.run import prepare
from tests.prepare.preparing import Make, contents, english, lines, listening

# Stopped and started again


def test_killed_at_any_moment_and_the_same_bytes_in_the_end(
    config: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_bytes(lines([{"text": english(3)[2].text[200:500]}]))
    changes: dict[str, Any] = {"prepare.benchmarks": {"quiz": str(benchmark)}}
    monkeypatch.setattr("slm2_minimal.prepare.units.MEGABYTE", 4_000)  # some twenty units
    changes["prepare.shard_megabytes"] = 1
    began = time.monotonic()
    prepare(config("whole", **changes))
    whole_takes = time.monotonic() - began
    expected = contents(tmp_path / "whole")
    script = (
        "import json, sys; from slm2_minimal.config import RunConfig;"
        " from slm2_minimal.prepare import units; units.MEGABYTE = 4_000;"
        " from slm2_minimal.prepare.run import prepare;"
        " print('ready', flush=True); prepare(RunConfig.from_dict(json.loads(sys.argv[1])))"
    )
    settings = json.dumps(config("broken", **changes).to_dict())
    rng, stood = random.Random(5), list[tuple[int, bool]]()
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", script, settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            process.wait(timeout=rng.uniform(0.0, 0.4) * whole_takes if len(stood) < 6 else 60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its worker processes
            process.wait()
            stood.append(
                (
                    len(list((tmp_path / "broken").glob("*.tokens.npy"))),
                    (tmp_path / "broken" / "manifest.json").exists(),
                )
            )
            continue
        break
    assert process.returncode == 0
    assert len(stood) >= 2, "killed at least twice"
    assert not all(complete for _, complete in stood), stood
    assert contents(tmp_path / "broken") == expected


def test_workers_end_with_a_main_process_that_is_killed(config: Make, tmp_path: Path) -> None:
    """And the same call goes on at once: it waits for them, since two writers in one
    folder would be one too many.
    """
    run = config("out", **{"prepare.workers": 2})
    main = subprocess.Popen(
        [sys.executable, "-c", SLOW, json.dumps(run.to_dict())],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert main.stdout is not None
    workers = [int(number) for number in main.stdout.readline().split()]
    assert len(workers) == 2
    with pytest.raises(
        DataError,
        match=r"another slm2 prepare is at work there; let it end, or name another folder$",
    ):
        prepare(run)
    main.kill()
    main.wait()
    prepare(run)
    alive = [
        path
        for number in workers
        if (path := Path(f"/proc/{number}/cmdline")).exists() and path.read_bytes()
    ]
    assert alive == [], "of a process that has ended, only its exit code may be left"


SLOW = """
import json, multiprocessing, sys, time
from slm2_minimal.config import RunConfig
from slm2_minimal.prepare import run as module, workers

def slow(job, unit):
    time.sleep(60)

module.tokenise_unit = slow
real = workers.ProcessPoolExecutor.submit

def submit(self, work, item):
    future = real(self, work, item)
    if work.func is slow and len(multiprocessing.active_children()) == 2:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    return future

workers.ProcessPoolExecutor.submit = submit
module.prepare(RunConfig.from_dict(json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("stage", ["ingest_source", "key_unit", "tokenise_unit", "publish"])
def test_a_failure_in_any_stage_is_gone_on_from(
    config: Make, tmp_path: Path, stage: str, monkeypatch: Any
) -> None:
    prepare(config("whole"))
    real = getattr(module, stage)

    def broken(*arguments: Any) -> Any:
        if stage == "publish" or "web" in str(arguments[1]):
            raise OSError(28, "No space left on device")
        return real(*arguments)

    broken.__module__, broken.__qualname__ = real.__module__, real.__qualname__
    with monkeypatch.context() as patch:
        patch.setattr(module, stage, broken)
        patch.setattr(f"{real.__module__}.{stage}", broken)
        with pytest.raises(
            DataError,
            match=(
                r"No space left on device; mend that .* and run the same again: what is complete"
                r" stays$"
            ),
        ):
            prepare(config("broken"))
    prepare(config("broken"))
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_lines_that_nobody_reads_are_no_fault_of_the_folder(config: Make) -> None:
    def closed(line: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    # It ends the command quietly.
    with listening(closed), pytest.raises(BrokenPipeError):
        prepare(config())
    assert prepare(config()).sources, "and what was written can be gone on from"


def test_a_second_call_does_nothing(config: Make, tmp_path: Path, said: list[str]) -> None:
    report = prepare(config())
    before = contents(tmp_path / "out")
    said.clear()
    assert prepare(config()) == report
    assert contents(tmp_path / "out") == before
    assert "is prepared already" in said[0]


def test_a_worker_that_dies_is_said(config: Make, monkeypatch: Any) -> None:
    def die(*arguments: Any) -> None:
        os._exit(9)

    die.__module__, die.__qualname__ = module.tokenise_unit.__module__, "tokenise_unit"
    monkeypatch.setattr(module, "tokenise_unit", die)
    monkeypatch.setattr(f"{die.__module__}.tokenise_unit", die)
    with pytest.raises(
        RuntimeError,
        match=(
            r"^a worker process died, perhaps out of memory; run the same again, with fewer"
            r" prepare\.workers$"
        ),
    ):
        prepare(config())


def test_a_stop_between_the_last_two_acts_leaves_nothing(
    config: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    """The manifest is written, the stages' files are not yet removed; and a `.part` of
    a killed process lies about.
    """
    prepare(config("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(publish, "remove_work", lambda job: None)
        prepare(config("broken"))
    assert (tmp_path / "broken" / "work").exists()
    prepare(config("broken"))
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "settings.json.17.part").write_text("{")
    prepare(config("new"))
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")
