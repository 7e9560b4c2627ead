"""The scripts of `slm2 launch`, read as bash and directives, and their start."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slm2_minimal.config import ConfigError, RunConfig
from slm2_minimal.launch import launch as launch_module
from slm2_minimal.launch.check import check
from slm2_minimal.launch.launch import launch
from slm2_minimal.launch.scripts import SAVING, WARNING, scripts
from slm2_minimal.prepare.run import prepare
from tests.complaints import complaint

Make = Callable[..., RunConfig]
FULL = RunConfig.preset("stablelm-2-1_6b")

# The scripts


def directives(text: str) -> dict[str, str]:
    return {
        key: value for key, value in re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE)
    }


def assert_bash(text: str) -> None:
    assert (
        subprocess.run(
            ["bash", "-n"], input=text, text=True, capture_output=True, check=False
        ).stderr
        == ""
    )


def test_scripts_for_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word arrives as it was, whatever it holds."""
    here = tmp_path / "it's $HOME"
    here.mkdir()
    monkeypatch.chdir(here)
    words = ["my run.toml", "--train.prompts", "[\"a 'b' $c\"]"]
    texts = scripts(
        FULL,
        words,
        512,
        Path("out"),
        {"partition": "long", "time": "2-0", "account": "a b", "no-kill": ""},
    )
    for text in texts.values():
        assert_bash(text)
    assert directives(texts["slurm.sh"]) == {
        "job-name": "slm2-stablelm-2-1_6b",
        "nodes": "64",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "exclusive": "",
        "mem": "0",
        "time": "2-0",
        "requeue": "",
        "signal": f"B:USR1@{WARNING}",
        "output": f"""'{tmp_path}/it'"'"'s $HOME/out/%x-%j.log'""",
        "open-mode": "append",
        "partition": "long",
        "account": "'a b'",
        "no-kill": "",
    }
    assert SAVING < WARNING
    program = tmp_path / "python"
    program.write_text('#!/bin/bash\npwd\nenv | grep ^TORCH_ | sort\nprintf "<%s>\\n" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    text = scripts(FULL, words, 512, Path("out"))["torchrun.sh"]
    given = {"PATH": os.environ["PATH"], "RENDEZVOUS": "first:20007", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", "-c", text], env=given, cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        str(here),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING}",
        "<-m>",
        "<slm2_minimal.launch.torchrun>",
        "<--nnodes=64>",
        "<--nproc-per-node=8>",
        "<--max-restarts=3>",
        "<--rdzv-backend=c10d>",
        "<--rdzv-endpoint=first:20007>",
        "<--rdzv-id=7>",
        "<-m>",
        "<slm2_minimal>",
        "<train>",
        *(f"<{word}>" for word in words),
    ]
    del given["RENDEZVOUS"]
    done = subprocess.run(
        ["bash", "-c", text], env=given, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "RENDEZVOUS: HOST:PORT of the first node" in done.stderr


def test_scripts_for_a_part_of_a_node() -> None:
    texts = scripts(FULL, ["x"], 2, Path("out"))
    assert "--nnodes=1 --nproc-per-node=2 " in texts["torchrun.sh"]
    assert "--standalone" in texts["torchrun.sh"]
    assert "rdzv" not in texts["torchrun.sh"]
    given = directives(texts["slurm.sh"])
    assert not {"exclusive", "partition"} & given.keys()
    assert (given["gpus-per-node"], given["time"]) == ("2", "24:00:00")
    assert (given["cpus-per-task"], given["mem"]) == ("8", "120G")


def test_scripts_for_nodes_of_four() -> None:
    texts = scripts(FULL, ["x"], 12, Path("out"), gpus_per_node=4)
    assert "--nnodes=3 --nproc-per-node=4 " in texts["torchrun.sh"]
    given = directives(texts["slurm.sh"])
    assert (given["nodes"], given["gpus-per-node"], given["mem"]) == ("3", "4", "0")
    assert "exclusive" in given


def test_a_site_that_names_gpus_otherwise() -> None:
    """None takes one of ours away, as `--sbatch gpus-per-node=` does."""
    options = {"gpus-per-node": None, "gres": "gpu:a100:2", "mem": "64G"}
    given = directives(scripts(FULL, ["x"], 2, Path("out"), options)["slurm.sh"])
    assert "gpus-per-node" not in given
    assert (given["gres"], given["mem"]) == ("gpu:a100:2", "64G")


@pytest.mark.parametrize(
    ("key", "value"),
    [("qos", "a\nrm -rf /"), ("qos\n", ""), ("--qos", "high"), ("", "x"), ("comment", "a\0")],
)
def test_an_option_that_is_more_than_a_line(key: str, value: str) -> None:
    said = complaint(lambda: scripts(FULL, ["x"], 16, Path("out"), {key: value}), ConfigError)
    assert "cannot stand in the script" in said


def test_a_folder_whose_name_slurm_would_read(tmp_path: Path) -> None:
    """Neither a line break nor a percent sign, which begins a pattern of SLURM."""
    text = scripts(FULL, ["x"], 16, tmp_path / "100%j")["slurm.sh"]
    assert directives(text)["output"] == f"{tmp_path}/100%%j/%x-%j.log"
    complaint(lambda: scripts(FULL, ["x"], 16, tmp_path / "a\nb"), ConfigError)


def test_a_prologue(small_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines run on every node before torchrun, in the same shell."""
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    (tmp_path / "site.sh").write_text("module() { export LOADED=$2; }\nmodule load 'cuda 12'")
    folder = tmp_path / "out"
    launch(small_run(), ["tiny"], 2, None, folder, prologue=str(tmp_path / "site.sh"), dry_run=True)
    text = (folder / "torchrun.sh").read_text().replace("exec", "echo $LOADED;", 1)
    told = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("cuda 12\n-m slm2_minimal.launch.torchrun ")


@pytest.mark.parametrize("content", [None, b"if true", b"\xff\xfe"], ids=str)
def test_a_prologue_that_is_none(small_run: Make, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "site.sh"
    if content is not None:
        path.write_bytes(content)
    out = tmp_path / "out"
    said = complaint(
        lambda: launch(small_run(), ["x"], 2, None, out, prologue=str(path)), ConfigError
    )
    assert said.startswith(f"prologue = '{path}': ")
    assert not out.exists()


def test_hybrid_shares_among_the_gpus_of_a_node(
    small_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this node, not of one with eight: check and memory go by that."""
    seen = list[RunConfig]()
    monkeypatch.setattr(launch_module, "check", lambda config, *_, **__: seen.append(config) or [])
    run = small_run(**{"parallel.strategy": "hybrid"})
    launch(run, ["x"], 8, gpus_per_node=4, dry_run=True)
    assert seen[0].parallel.shard_ranks == 4


# Starting


def test_what_launch_does(
    small_run: Make,
    tmp_path: Path,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Several nodes, or any option of sbatch: submitted. One node: torchrun here. A dry
    run: neither, and the command to type.
    """
    run, started = small_run(), list[tuple[str, list[str]]]()
    monkeypatch.setattr(os, "execvp", lambda name, words: started.append((name, words)))
    caplog.set_level(logging.INFO, logger="slm2_minimal.launch.launch")
    folder = tmp_path / "run" / "launch"
    launch(run, ["tiny"], 2, dry_run=True)
    assert caplog.messages == [
        *check(run, 2),
        f"nothing was started; to do it: bash {folder}/torchrun.sh",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["slurm.sh", "torchrun.sh"]
    launch(run, ["tiny"], 2, dry_run=True, options={"partition": "long"})
    assert caplog.messages[-1] == f"nothing was started; to do it: sbatch {folder}/slurm.sh"
    assert not started
    assert not slurm.exists()
    launch(run, ["tiny"], 2, folder=tmp_path / "scripts")
    assert started == [("bash", ["bash", f"{tmp_path}/scripts/torchrun.sh"])]
    launch(run, ["tiny"], 2, options={"partition": "long"})
    assert slurm.read_text() == f"sbatch {folder}/slurm.sh\n"
    assert directives((folder / "slurm.sh").read_text())["partition"] == "long"
    assert len(started) == 1
    prepared = small_run(
        "large", **{"data.prepared": str(tmp_path / "prepared"), "train.global_batch_tokens": 2048}
    )
    prepare(prepared)
    launch(prepared, ["tiny"], 16)
    assert slurm.read_text().splitlines()[-1] == f"sbatch {tmp_path}/large/launch/slurm.sh"


def test_sbatch_that_is_missing_or_refuses(
    small_run: Make, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\nexit 3\n")
    with pytest.raises(
        RuntimeError,
        match=r"^sbatch ended with 3, what it said is above; mend that and run the same again$",
    ):
        launch(small_run(), ["tiny"], 2, options={"time": "1:00"})
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(ConfigError, match=r"^sbatch: not on this machine; "):
        launch(small_run("other"), ["tiny"], 2, options={"time": "1:00"})
    assert not (tmp_path / "other").exists()
