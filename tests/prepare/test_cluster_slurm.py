"""The SLURM scripts of a preparation: written without a cluster, submitted in a chain,
and run as they stand.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import dill
import pytest
from loguru import logger

from slm2_minimal.config import ConfigError
from slm2_minimal.prepare.cluster import run_slurm
from slm2_minimal.prepare.run import prepare
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from tests.prepare.clustering import assert_same, directives
from tests.prepare.preparing import Make

# SLURM


def test_scripts_without_a_cluster(
    cluster: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    options = {
        "partition": "long",
        "time": "02:30:00",
        "mem-per-cpu": "8G",
        "account": "x1",
        "exclusive": "",
    }
    heard = list[str]()
    logger.add(heard.append)  # what datatrove would log
    run_slurm(cluster("out", **{"prepare.workers": 0}), 3, options, dry_run=True)
    assert heard == []
    tasks = {"read": 3, "compare": 1, "tokenise": 3, "publish": 1}
    for stage, number in tasks.items():
        folder = tmp_path / "out" / "logs" / stage
        expected = options | {
            "array": f"0-{number - 1}",
            "job-name": f"slm2-{stage}",
            "cpus-per-task": "1",
            "nodes": "1",
            "requeue": "",
            "chdir": str(tmp_path),
            "kill-on-invalid-dep": "yes",
            "output": f"{folder}/slurm_logs/%A_%a.out",
            "error": f"{folder}/slurm_logs/%A_%a.out",
        }
        assert directives(stage) == expected
        command = (folder / "launch_script.slurm").read_text().splitlines()[-1]
        assert command.split() == [
            "srun",
            "-l",
            "-n",
            "1",
            "launch_pickled_pipeline",
            str(folder / "executor.pik"),
        ]
        assert json.loads((folder / "ranks_to_run.json").read_text()) == list(range(number))
        with (folder / "executor.pik").open("rb") as file:
            executor = dill.load(file)  # written a moment ago, by us
        assert (executor.world_size, executor.depends) == (number, None)
    assert (
        f'export PATH={Path(sys.executable).parent}:"$PATH"'
        in Path("out/logs/read/launch_script.slurm").read_text()
    )
    lines = Path("out/logs/submit.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    for number, stage in enumerate(tasks):
        after = f" --dependency=afterok:$job{number - 1}" if number else ""
        script = f"{tmp_path}/out/logs/{stage}/launch_script.slurm"
        assert (
            lines[3 + number]
            == f"job{number}=$(sbatch --parsable --export=ALL,RUN_OFFSET=0{after} {script})"
        )
        assert said[number].split() == [
            f"slm2-{stage}",
            "|",
            str(tasks[stage]),
            f"task{'s' * (tasks[stage] > 1)}",
            "|",
            script,
        ]
    assert said[4:] == [
        f"nothing was submitted; to do it, in this order: bash {tmp_path}/out/logs/submit.sh"
    ]
    assert not Path("out/work/text").exists()  # nothing was read here


def test_defaults_and_more_tasks_than_an_array_has(cluster: Make) -> None:
    run_slurm(cluster("out"), dry_run=True)
    assert "partition" not in directives("read")
    assert [directives("read")[key] for key in ("time", "mem-per-cpu", "array")] == [
        "24:00:00",
        "4G",
        "0-7%2",
    ]  # 8 inputs, 2 workers
    run_slurm(cluster("big"), 2500, dry_run=True)
    with Path("big/logs/read/executor.pik").open("rb") as file:
        executor = dill.load(file)
    assert (executor.tasks, executor.tasks_per_job) == (2500, 3)
    assert (
        "#SBATCH --array=0-833%2\n" in Path("big/logs/read/launch_script.slurm").read_text()
    )  # 834 jobs of three tasks or less
    assert (
        Path("big/logs/submit.sh").read_text().count("sbatch") == 4
    )  # one array each: a stage depends on all of the one before


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Programs of these names, before all others."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_stages_are_submitted_in_a_chain(
    cluster: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """With a program in the place of `sbatch` that writes down what it is told, and
    answers with a number alone, as it does with --parsable.
    """
    sbatch = f'echo "$@" >> {tmp_path}/told\necho $((100 + $(wc -l < {tmp_path}/told)))\n'
    put_on_path(tmp_path / "bin", monkeypatch, sbatch=sbatch)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")  # as in a shell on a compute node
    run_slurm(cluster("out"), 3)
    told = [line.rpartition(" ")[0] for line in Path("told").read_text().splitlines()]
    assert told == [
        "--parsable --export=ALL,RUN_OFFSET=0",
        *(
            f"--parsable --export=ALL,RUN_OFFSET=0 --dependency=afterok:{number}"
            for number in range(101, 104)
        ),
    ]
    assert [line.rpartition(" | ")[2] for line in said] == [
        f"job {number}" for number in range(101, 105)
    ]
    # Since then all tasks but one of `tokenise` have been done.
    for stage, done in (("read", range(3)), ("compare", [0]), ("tokenise", [0, 2])):
        (Path("out/logs") / stage / "completions").mkdir()
        for rank in done:
            (Path("out/logs") / stage / "completions" / f"{rank:05d}").touch()
    Path("told").unlink()
    run_slurm(cluster("out"), 3)
    assert Path("told").read_text().splitlines()[0].split()[:-1] == [
        "--parsable",
        "--export=ALL,RUN_OFFSET=0",
    ]
    assert len(Path("told").read_text().splitlines()) == 2
    states = [line.rpartition(" | ")[2] for line in said[4:]]
    assert states == ["complete", "complete", "job 101", "job 102"]
    assert json.loads(Path("out/logs/tokenise/ranks_to_run.json").read_text()) == [1]
    assert directives("tokenise")["array"] == "0-0%2"


def test_sbatch_that_refuses(
    cluster: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, sbatch="echo 'invalid partition' >&2\nexit 3\n")
    with pytest.raises(
        RuntimeError,
        match=r"^sbatch ended with 3, what it said is above; mend that and run the same again$",
    ):
        run_slurm(cluster("out"))


def test_a_folder_that_scripts_cannot_name(cluster: Make) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"^data\.prepared = 'my data': datatrove's scripts do not quote it; name a folder"
            r" without blanks$"
        ),
    ):
        run_slurm(cluster("my data"), dry_run=True)
    assert not Path("my data").exists()


@pytest.mark.slow
def test_the_scripts_run_as_they_stand(
    cluster: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: SentencePieceTokenizer
) -> None:
    """All of it, with programs in the place of SLURM's: one that runs the elements of
    an array at once, one after another.
    """
    exact = {"prepare.duplicates": "exact"}
    run_slurm(cluster("out", **exact), 2, dry_run=True)
    sbatch = f"""
script="${{@: -1}}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for i in $(seq 0 $last); do
    SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=here bash "$script" >> {tmp_path}/log 2>&1 || exit 1
done
echo 1
"""
    put_on_path(
        tmp_path / "bin",
        monkeypatch,
        sbatch=sbatch,
        srun='shift 3\nexec "$@"\n',
        scontrol="echo here\n",
    )
    done = subprocess.run(
        ["bash", "out/logs/submit.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (tmp_path / "log").read_text()[-2000:]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    prepare(cluster("own", **exact))
    assert_same(cluster("out", **exact), cluster("own", **exact), tiny)
