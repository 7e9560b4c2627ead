"""On datatrove's executors comes out what `prepare` makes, work goes on where it
stopped, and the SLURM scripts run as they stand.
"""

import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.cli import main
from slm2_minimal.config import ConfigError, DataError, RunConfig
from slm2_minimal.prepare import cluster as module
from slm2_minimal.prepare import run as own_module
from slm2_minimal.prepare.cluster import run_local, run_slurm
from slm2_minimal.prepare.run import prepare
from slm2_minimal.prepare.units import Unit
from slm2_minimal.prepare.work import Job, UnitResult
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from tests.prepare.clustering import BOOKS, WEB, assert_same, directives, texts
from tests.prepare.preparing import Make, listening

# The same documents


@pytest.fixture(scope="module")
def whole_corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunConfig]:
    """The preset `tiny`, prepared into a folder of that name by `prepare`; and the same
    for other folders.
    """
    folder = tmp_path_factory.mktemp("corpus")

    def make(name: str) -> RunConfig:
        return RunConfig.load("tiny", {"data.prepared": str(folder / name), "prepare.workers": 2})

    prepare(make("own"))
    return make


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_embedded_corpus(
    whole_corpus: Callable[[str], RunConfig], tasks: int, tiny: SentencePieceTokenizer
) -> None:
    run = whole_corpus(f"{tasks}")
    report = run_local(run, tasks)
    assert sum(row.documents for row in report.sources.values()) > 900
    assert_same(run, whole_corpus("own"), tiny)


@pytest.mark.parametrize("tasks", [1, 3])
def test_planted_duplicates_and_leaks_go_and_the_first_stays(
    cluster: Make, tasks: int, tiny: SentencePieceTokenizer
) -> None:
    """What stays is written beside the texts above. The chain A~B~C is in three files,
    C in the first.
    """
    none_held_out = {"data.validation_percent": 0}
    report = run_local(cluster("out", **none_held_out), tasks)
    kept = [text for _, rows in WEB for text, stays in rows if stays]
    assert texts("out", "web", tiny) == [unicodedata.normalize("NFC", text) for text in kept]
    assert texts("out", "books", tiny) == [text for text, stays in BOOKS if stays]
    assert report.duplicates.exact_removed == 4
    assert (
        len(list(Path("out").glob("web-*.tokens.npy"))) > 2
    )  # the borders between units lie somewhere
    assert report.duplicates.near_removed == 2
    assert report.sources["web"].skipped == {
        "empty": 1,
        "too short": 1,
        "not JSON": 1,
        "no text": 1,
        "not UTF-8": 1,
    }
    assert report.contamination.benchmarks["quiz"].hit_documents == 1
    prepare(cluster("own", **none_held_out))
    assert_same(cluster("out", **none_held_out), cluster("own", **none_held_out), tiny)


@pytest.mark.parametrize(
    ("tasks", "changes"),
    [
        (3, {"prepare.keep": "longest", "prepare.contaminated": "cut"}),
        (20, {"prepare.duplicates": "exact", "prepare.workers": 1}),  # more tasks than files
        (2, {"prepare.duplicates": "keep"}),
        (2, {"prepare.duplicates": "keep", "prepare.benchmarks": {}}),
        (3, {"prepare.benchmarks": {}, "prepare.similarity": 0.9, "data.validation_percent": 40}),
    ],
    ids=str,
)
def test_other_settings(
    cluster: Make, tasks: int, changes: dict[str, Any], tiny: SentencePieceTokenizer
) -> None:
    run, own = cluster("out", **changes), cluster("own", **changes)
    assert run_local(run, tasks) == prepare(own)
    assert_same(run, own, tiny)


def test_little_is_said_and_complete_tasks_are_marked(
    cluster: Make, capfd: pytest.CaptureFixture[str], said: list[str]
) -> None:
    run_local(cluster("out"), 3)
    assert capfd.readouterr() == ("", "")
    stages = ["read     | 3 of 3", "compare  | 1 of 1", "tokenise | 3 of 3", "publish  | 1 of 1"]
    assert [line for line in said if line in stages] == stages
    assert any(line.startswith("source ") for line in said)
    marks = Path("out/logs/tokenise/completions").iterdir()
    assert sorted(path.name for path in marks) == ["00000", "00001", "00002"]


# Stopped and started again


def stopped(*arguments: Any) -> None:
    raise DataError("stopped here")


def test_a_stage_that_failed_is_run_again_and_the_ones_before_are_not(
    cluster: Make, tiny: SentencePieceTokenizer, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(cluster("own"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "mark_duplicates", stopped)
        with pytest.raises(DataError, match="stopped here"):
            run_local(cluster("out"), 3)
    assert said[-1].startswith("read     | 3 of 3")
    before = {
        path: path.stat().st_mtime_ns for path in Path("out/work").rglob("*") if path.is_file()
    }
    assert {"keys", "text", "units"} <= {path.parent.name for path in before}
    (Path("web") / "a.jsonl.gz").rename(
        "elsewhere"
    )  # of the same name and size, and no text at all: nobody looks
    (Path("web") / "a.jsonl.gz").write_bytes(b"0" * Path("elsewhere").stat().st_size)
    seen: dict[Path, int] = {}

    def look(line: str) -> None:
        seen.update({path: path.stat().st_mtime_ns for path in before if path.exists()})

    with listening(look):
        run_local(cluster("out"))
    assert seen == before
    assert_same(cluster("out"), cluster("own"), tiny)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_failed_is_run_again_alone(
    cluster: Make, workers: int, tiny: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, own, real = (
        cluster("out", **{"prepare.workers": workers}),
        cluster("own"),
        module.tokenise_unit,
    )
    prepare(own)

    def broken(job: Job, unit: Unit) -> UnitResult:
        if "-000002-" in unit.name:  # the last task's, which begins when another has ended
            raise OSError(28, "No space left on device")
        return real(job, unit)

    with monkeypatch.context() as patch:
        patch.setattr(module, "tokenise_unit", broken)
        with pytest.raises(DataError, match="No space left on device; mend that"):
            run_local(run, 3)
    marks = {
        path: path.stat().st_mtime_ns for path in Path("out/logs/tokenise/completions").iterdir()
    }
    assert {path.name for path in marks} in ({"00000"}, {"00001"}, {"00000", "00001"})
    run_local(run, 3)
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    assert_same(run, own, tiny)


def test_a_worker_that_dies_is_said(cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tokenise_unit", lambda job, unit: os._exit(9))
    with pytest.raises(
        RuntimeError,
        match=(
            r"^a worker process died, perhaps out of memory; run the same again, with fewer"
            r" prepare\.workers$"
        ),
    ):
        run_local(cluster("out"), 2)


def test_a_second_call_does_nothing(cluster: Make, said: list[str]) -> None:
    report = run_local(cluster("out"), 3)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    said.clear()
    assert run_local(cluster("out"), 3) == report
    run_slurm(cluster("out"), dry_run=True)
    assert said == ["out is prepared already; remove it to prepare it again"] * 2
    job = Job(cluster("out").data, cluster("out").prepare)
    module.publish_all(job, 0)  # a task that SLURM started twice
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


def test_a_folder_belongs_to_one_way_of_sharing_the_work(
    cluster: Make, tiny: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for where in (module, own_module):
            patch.setattr(where, "mark_duplicates", stopped)
        with pytest.raises(DataError, match="stopped here"):
            run_local(cluster("out"), 3)
        with pytest.raises(DataError, match="stopped here"):
            prepare(cluster("own"))
    with pytest.raises(
        ConfigError, match=r"^tasks = 2: out was begun with 3; use that, or name another folder$"
    ):
        run_local(cluster("out"), 2)
    with pytest.raises(
        DataError,
        match=r"^data\.prepared = 'own': was begun on one machine; go on with --executor own",
    ):
        run_local(cluster("own"), 3)
    with pytest.raises(DataError, match=r"was begun with other 'prepare' \(keep: "):
        run_local(cluster("out", **{"prepare.keep": "longest"}), 3)
    for tasks in (0, 10**8):
        with pytest.raises(ConfigError, match=rf"^tasks = {tasks}: must be from 1 to 100,000$"):
            run_local(cluster("new"), tasks)
    assert not Path("new").exists()
    prepare(cluster("out"))  # what tasks have left does not mislead it
    prepare(cluster("own"))
    assert_same(cluster("out"), cluster("own"), tiny)


def test_marks_of_work_that_was_removed_are_forgotten(
    cluster: Make, tiny: SentencePieceTokenizer
) -> None:
    run_local(cluster("out"), 3)
    (Path("out") / "manifest.json").unlink()  # and `work` has gone with the last stage
    run_local(cluster("out"), 2)
    prepare(cluster("own"))
    assert_same(cluster("out"), cluster("own"), tiny)


# The command line


def arguments(*words: str) -> list[str]:
    sources = '{books = {path = "books.jsonl"}, code = {languages = ["code"]}}'
    return [
        "prepare",
        "tiny",
        *words,
        "--data.prepared",
        "out",
        "--data.sources",
        sources,
        "--prepare.workers",
        "2",
    ]


def test_the_command_line(cluster: Make, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert (
        main(
            arguments(
                "--executor",
                "slurm",
                "--dry-run",
                "--tasks",
                "2",
                "--partition",
                "long",
                "--time",
                "1:00",
                "--sbatch",
                "qos=high",
            )
        )
        == 0
    )
    out, err = capfd.readouterr()
    assert err == ""
    assert "submit.sh" in out.splitlines()[-1]
    assert [directives("tokenise")[key] for key in ("partition", "time", "qos")] == [
        "long",
        "1:00",
        "high",
    ]
    assert main(arguments("--executor", "local", "--tasks", "2")) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines()[-3].startswith("source ")
    assert Path("out/manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "2"], "--tasks: means nothing to --executor own; leave it out, or use slurm"),
        (
            ["--executor", "local", "--dry-run"],
            "--dry-run: means nothing to --executor local; leave it out, or use slurm",
        ),
        (
            ["--executor", "slurm"],
            (
                "executor = 'slurm': there is no sbatch on this machine; go to a login node, or add"
                " --dry-run"
            ),
        ),
    ],
)
def test_wrong_words(
    tmp_path: Path,
    words: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert main(arguments(*words)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"slm2: {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_datatrove(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "slm2_minimal.prepare.cluster")
    for name in [name for name in sys.modules if name.split(".")[0] == "datatrove"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(arguments("--executor", "local")) == 2
    assert (
        capfd.readouterr().err
        == "slm2: prepare with --executor local or slurm needs the package 'datatrove': pip install"
        " 'slm2-minimal[cluster]'\n"
    )
