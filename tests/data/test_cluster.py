"""On datatrove's executors comes out what `prepare` makes, work goes on where it stopped, and the SLURM scripts run as they stand."""

import gzip
import itertools
import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from slm2_minimal.cli import main
from slm2_minimal.config import ConfigError, DataError, RunConfig
from slm2_minimal.data import cluster_steps as steps
from slm2_minimal.data import units as units_module
from slm2_minimal.data.cluster import deal, run_local, run_slurm
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.prepare import prepare
from slm2_minimal.data.shards import COUNTS, open_prepared, read_manifest
from slm2_minimal.data.stages import Job
from slm2_minimal.data.units import Unit
from slm2_minimal.data.words import words_of
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

Make = Callable[..., RunConfig]
TEXTS = [document.text for document in load_corpus(languages=["en"])[:30]]
WORDS = sorted({word for text in TEXTS for word in text.split() if word.isalpha()})


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def chain() -> list[str]:
    """Three texts of 200 words: the second shares 170 with each of the others, which share 140."""
    words = random.Random(7).choices(WORDS, k=260)
    return [" ".join(words[begin : begin + 200]) for begin in (0, 30, 60)]


def spread_out(text: str) -> str:
    """The same words with other white space: an exact copy."""
    return f"  {text.replace(' ', '  ')}\n"


A, B, C = chain()
NO_WORDS = "*** --- *** --- *** ---"
QUIZ = " ".join(TEXTS[20].split()[5:30])
LEAKED = f"{TEXTS[21]} {QUIZ} {TEXTS[22]}"
WEB = [  # the files of a folder; beside each text whether it stays
    ("a.jsonl.gz", [(TEXTS[0], True), (C, True), (TEXTS[1], True), (NO_WORDS, True)]),
    ("b.jsonl", [("", False), ("too short", False), (TEXTS[2], True), (spread_out(TEXTS[0]), False), (A, False)]),
    ("c.jsonl", []),
    ("d/e.jsonl", [(LEAKED, False), (TEXTS[3], True), (TEXTS[2], False), (TEXTS[4], True), ("? ! ? ! ? ! ? ! ? ! ? !", True)]),
    ("f.txt", [(TEXTS[5], True)]),
    ("g.jsonl", [(text, True) for text in TEXTS[6:9]]),
]
BOOKS = [(B, False), (TEXTS[9], True), (TEXTS[1], False), (NO_WORDS, False), (TEXTS[10], True)]
CHANGES = {"prepare.similarity": 0.6, "prepare.shard_megabytes": 1}


def as_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.fixture(scope="module", autouse=True)
def table_of_characters() -> None:
    """Made here, so that the processes that are forked need not make it each."""
    words_of([""])


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`config(name, **changes)`: a folder of six files, one file, and a part of the embedded corpus. Units are of some kilobytes."""
    monkeypatch.setattr(units_module, "MEGABYTE", 6_000)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of small files; no test here pulls the plug
    monkeypatch.chdir(tmp_path)
    for name, texts in WEB:
        path = tmp_path / "web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written = as_lines([text for text, _ in texts]) if path.suffix != ".txt" else texts[0][0].encode()
        path.write_bytes(gzip.compress(written) if path.suffix == ".gz" else written)
    with (tmp_path / "web" / "g.jsonl").open("ab") as file:
        file.write(b'{broken\n{"no": "text"}\n{"text": "Prei\xdfe"}\n')
    (tmp_path / "books.jsonl").write_bytes(as_lines([text for text, _ in BOOKS]))
    (tmp_path / "quiz.jsonl").write_bytes(as_lines([QUIZ]))

    def make(name: str, **changes: Any) -> RunConfig:
        sources = {"web": {"path": "web"}, "books": {"path": "books.jsonl"}, "code": {"languages": ["code"]}}
        first = {"data.prepared": name, "data.sources": sources, "prepare.benchmarks": {"quiz": "quiz.jsonl"}, "prepare.workers": 2}
        return RunConfig.load("tiny", first | CHANGES | changes)

    return make


def stream(folder: str | Path, source: str, eos: int) -> TokenStream:
    """A source's shards as one."""
    parts = [shard["name"] for shard in read_manifest(Path(folder))["sources"][source]]
    arrays = [[np.load(Path(folder) / f"{name}.{kind}.npy") for kind in ("tokens", "starts")] for name in parts]
    return TokenStream.joined([TokenStream(tokens, starts, eos) for tokens, starts in arrays])


def texts(folder: str | Path, source: str, tokenizer: SentencePieceTokenizer) -> list[str]:
    found = stream(folder, source, tokenizer.eos_token_id)
    return [tokenizer.decode(part[:-1].tolist()) for part in np.split(found.tokens, found.starts[1:])]


def assert_same(run: RunConfig, other: RunConfig, tokenizer: SentencePieceTokenizer) -> None:
    """Both folders hold the same documents in the same order, held out and trained on, and the same report."""
    one, two = (Path(r.data.prepared or "") for r in (run, other))
    names = [COUNTS, "report.json", *(path.name for path in two.glob("held_out.*.npy"))]
    assert len(names) > 2 or not run.data.validation_percent
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    for source in run.data.sources:
        assert stream(one, source, tokenizer.eos_token_id).digest() == stream(two, source, tokenizer.eos_token_id).digest(), source
    ours, theirs = (open_prepared(r.data, tokenizer) for r in (run, other))
    assert ours.tokens == theirs.tokens
    assert ours.held_out.keys() == theirs.held_out.keys()
    assert not (one / "work").exists()


# The same documents


@pytest.fixture(scope="module")
def whole_corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunConfig]:
    """The preset `tiny`, prepared into a folder of that name by `prepare`; and the same for other folders."""
    folder = tmp_path_factory.mktemp("corpus")

    def make(name: str) -> RunConfig:
        return RunConfig.load("tiny", {"data.prepared": str(folder / name), "prepare.workers": 2})

    prepare(make("own"), quiet)
    return make


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_embedded_corpus(whole_corpus: Callable[[str], RunConfig], tasks: int, tiny: SentencePieceTokenizer) -> None:
    run = whole_corpus(f"{tasks}")
    report = run_local(run, tasks, quiet)
    assert sum(row["documents"] for row in report["sources"].values()) > 900
    assert_same(run, whole_corpus("own"), tiny)


@pytest.mark.parametrize("tasks", [1, 3])
def test_planted_duplicates_and_leaks_go_and_the_first_stays(config: Make, tasks: int, tiny: SentencePieceTokenizer) -> None:
    """What stays is written beside the texts above. The chain A~B~C is in three files, C in the first."""
    none_held_out = {"data.validation_percent": 0}
    report = run_local(config("out", **none_held_out), tasks, quiet)
    kept = [text for _, rows in WEB for text, stays in rows if stays]
    assert texts("out", "web", tiny) == [unicodedata.normalize("NFC", text) for text in kept]
    assert texts("out", "books", tiny) == [text for text, stays in BOOKS if stays]
    assert report["duplicates"]["exact_removed"] == 4
    assert len(list(Path("out").glob("web-*.tokens.npy"))) > 2  # the borders between units lie somewhere
    assert report["duplicates"]["near_removed"] == 2
    assert report["sources"]["web"]["skipped"] == {"empty": 1, "too short": 1, "not JSON": 1, "no text": 1, "not UTF-8": 1}
    assert report["contamination"]["benchmarks"]["quiz"]["hit_documents"] == 1
    prepare(config("own", **none_held_out), quiet)
    assert_same(config("out", **none_held_out), config("own", **none_held_out), tiny)


@pytest.mark.parametrize(
    ("tasks", "changes"),
    [
        (3, {"prepare.keep": "longest", "prepare.contaminated": "cut"}),
        (20, {"prepare.duplicates": "exact", "prepare.workers": 1}),  # more tasks than files, and ten to a bucket
        (2, {"prepare.duplicates": "keep"}),
        (2, {"prepare.duplicates": "keep", "prepare.benchmarks": {}}),
        (3, {"prepare.benchmarks": {}, "prepare.similarity": 0.9, "data.validation_percent": 40}),
    ],
    ids=str,
)
def test_other_settings(config: Make, tasks: int, changes: dict[str, Any], tiny: SentencePieceTokenizer) -> None:
    run, own = config("out", **changes), config("own", **changes)
    assert run_local(run, tasks, quiet) == prepare(own, quiet)
    assert_same(run, own, tiny)


def test_little_is_said_and_the_rest_is_in_files(config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    said = list[str]()
    run_local(config("out"), 3, said.append)
    assert capfd.readouterr() == ("", "")
    buckets = 2 + Job(config("out").data, config("out").prepare).lsh.bands  # type: ignore[union-attr]
    assert [line for line in said if line.startswith(("read", "pairs"))][-1] == f"pairs    | {buckets} of {buckets}"
    assert [line.partition(" of ")[0] for line in said if line[:8].strip() in ("clusters", "publish")] == ["clusters | 1", "publish  | 1"]
    assert any(line.startswith("source ") for line in said)
    assert "decontaminate and tokenise" in Path("out/logs/shards/logs/task_00002.log").read_text()


# Parts


def test_files_are_dealt_in_runs() -> None:
    files = [("web", "a", 10), ("web", "b", 10), ("web", "c", 20), ("hub", "owner/name", None), ("en", None, None)]
    assert deal(files, 1) == [[("web", ["a", "b", "c"]), ("hub", ["owner/name"]), ("en", [None])]]
    # 40 bytes on two tasks: what has no size counts as 20, so that each has 40 of 80.
    assert deal(files, 2) == [[("web", ["a", "b", "c"])], [("hub", ["owner/name"]), ("en", [None])]]
    assert deal([("web", "a", 0)], 2) == [[("web", ["a"])], []]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9) | st.none()), min_size=1), st.integers(1, 7))
def test_no_file_is_lost_and_no_task_has_much_more_than_its_share(rows: list[tuple[str, int | None]], tasks: int) -> None:
    files = [(source, str(number), size) for number, (source, size) in enumerate(rows)]
    dealt = deal(files, tasks)
    assert len(dealt) == tasks
    assert [(source, path) for own in dealt for source, paths in own for path in paths] == [(source, path) for source, path, _ in files]
    known = sum(size or 0 for _, _, size in files)
    sizes = {path: max(known // tasks, 1) if size is None else size for _, path, size in files}
    for own in dealt:
        assert sum(sizes[str(path)] for _, paths in own for path in paths) <= sum(sizes.values()) / tasks + max(sizes.values())


def job_of(folder: Path, tasks: int, **changes: Any) -> Job:
    """A job whose tasks have one unit each, of a hundred documents."""
    run = RunConfig.load("tiny", {"data.prepared": str(folder), "prepare.duplicates": "exact"} | changes)
    job = Job(run.data, run.prepare)
    (job.work() / steps.TASKS).write_text(json.dumps([[["en", [None]]]] * tasks))
    for rank in range(tasks):
        unit = Unit(f"en-{rank:06d}-000000", "en", 100, 0, 100, {}, last=True)
        (job.work("units") / f"{rank:06d}.json").write_text(json.dumps([vars(unit)]))
    return job


def listed(job: Job, rank: int) -> list[int]:
    path = job.work("removed") / f"{rank:06d}.remove"
    return np.fromfile(path, "<u4").tolist() if path.exists() else []


@pytest.mark.parametrize("pairs", [[("B", "C"), ("A", "B")], [("A", "B"), ("B", "C")], [("C", "D"), ("A", "B"), ("B", "C")]])
def test_the_first_of_a_cluster_stays_whatever_the_order_of_its_pairs(
    tmp_path: Path, pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps.ChooseWhoStays, "_write_report", lambda self, *numbers: None)
    job, places = job_of(tmp_path, 3), {"A": (0, 7), "B": (0, 9), "C": (1, 3), "D": (2, 8)}
    found = np.asarray([(*places[a], *places[b]) for a, b in pairs], dtype="<u4")
    (job.work("pairs") / "00000_00.dups").write_bytes(found.tobytes())
    (job.work("pairs") / "00001_00.dups").write_bytes(np.asarray([0, 0, 0, 1], dtype="<u4").tobytes())  # the same id, and no more
    steps.ChooseWhoStays(job).run()
    assert [listed(job, rank) for rank in range(3)] == [[9], [3], [8] if len(pairs) == 3 else []]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.integers(0, 2), st.integers(0, 5)] * 2), max_size=12))
def test_clusters_are_the_components_of_the_pairs(tmp_path: Path, pairs: list[tuple[int, int, int, int]]) -> None:
    job = job_of(tmp_path, 3)
    for path in job.work("removed").iterdir():
        path.unlink()
    pairs = [pair for pair in pairs if pair[:2] != pair[2:]]
    for file in range(2):  # of one bucket
        (job.work("pairs") / f"00000_{file:02d}.dups").write_bytes(np.asarray(pairs[file::2], dtype="<u4").tobytes())
    found = MonkeyReport()
    step = steps.ChooseWhoStays(job)
    step._write_report = found  # type: ignore[method-assign]
    step.run()
    first = {(rank, place): (rank, place) for rank in range(3) for place in range(100)}
    for _ in pairs:
        for a, b in ((pair[:2], pair[2:]) for pair in pairs):
            first[a] = first[b] = min(first[a], first[b])
    expected = [document for document, stays in first.items() if stays != document]
    assert [(rank, place) for rank in range(3) for place in listed(job, rank)] == expected
    members = [stays for document, stays in first.items() if list(first.values()).count(stays) > 1]
    assert sum(size * count for size, count in found.sizes.items()) == len(members)


class MonkeyReport:
    """Takes the place of the report, and keeps the sizes of the clusters."""

    def __call__(self, removed: Any, sizes: dict[int, int], *rest: Any) -> None:
        self.sizes = sizes


@pytest.mark.parametrize("share", [1, 2, 5])
def test_every_key_meets_its_like_and_no_other(tmp_path: Path, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through our signatures and datatrove's search: the largest keys too, the smallest, and those that differ in their last bits."""
    top, few = 2**64 - 1, [5, 2**63, 2**63 + 1, 2**61, 2**64 - 9]
    columns = [[top, top - 1, 0, 1, *few], [top, 2, 0, *few], [], [few[2], top, *few]]
    job = job_of(tmp_path, len(columns))

    def write_keys(path: Path, ids: Any, texts: Any, lsh: Any) -> None:
        keys = np.asarray(columns[int(path.stem)], dtype=np.uint64)
        np.save(path, np.stack([keys, keys, keys, keys]))

    monkeypatch.setattr(steps, "write_keys", write_keys)
    for rank in range(len(columns)):
        steps.WriteSignatures(job).run(iter(()), rank)
    settings = MinhashConfig(num_buckets=2, hashes_per_bucket=2, hash_config=HashConfig(precision=64, hash_fc="sha1"))
    for rank in range(2 * share):
        steps.FindPairs(str(job.work("signatures")), str(job.work("pairs")), config=settings).run(None, rank, 2 * share)
    where: dict[int, list[tuple[int, int]]] = {}
    for rank, keys in enumerate(columns):
        for place, key in enumerate(keys):
            where.setdefault(key, []).append((rank, place))
    expected = sorted((*a, *b) for key, found in where.items() if key for a, b in itertools.pairwise(found))
    for bucket in range(2):
        files = sorted(job.work("pairs").glob(f"{bucket:05d}_*.dups"))
        assert len(files) == share
        assert sorted(tuple(row) for file in files for row in np.fromfile(file, "<u4").reshape(-1, 4).tolist()) == expected


# Stopped and started again


def test_a_stage_that_failed_is_run_again_and_the_ones_before_are_not(config: Make, tiny: SentencePieceTokenizer) -> None:
    quiz = Path("quiz.jsonl").read_bytes()
    prepare(config("own"), quiet)
    Path("quiz.jsonl").unlink()
    said = list[str]()
    with pytest.raises(DataError, match=r"^path = 'quiz\.jsonl': no such file or folder"):
        run_local(config("out"), 3, said.append)
    assert said[-1].startswith("pairs    | ")
    before = {path: path.stat().st_mtime_ns for path in Path("out/work").rglob("*") if path.is_file() and "removed" not in path.parts}
    Path("quiz.jsonl").write_bytes(quiz)
    (Path("web") / "a.jsonl.gz").rename("elsewhere")  # of the same name and size, and no text at all: nobody looks
    (Path("web") / "a.jsonl.gz").write_bytes(b"0" * Path("elsewhere").stat().st_size)
    seen: dict[Path, int] = {}
    run_local(config("out"), say=lambda line: seen.update({path: path.stat().st_mtime_ns for path in before if path.exists()}))
    assert {path: seen[path] for path in before if path.name != steps.CLUSTERS} == {
        path: when for path, when in before.items() if path.name != steps.CLUSTERS
    }
    assert_same(config("out"), config("own"), tiny)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_failed_is_run_again_alone(
    config: Make, workers: int, tiny: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, own, real = config("out", **{"prepare.workers": workers}), config("own"), steps.write_unit
    prepare(own, quiet)

    def broken(job: Job, unit: Unit, documents: Any) -> dict[str, Any]:
        if "-000002-" in unit.name:  # the last task's, which begins when another has ended
            raise OSError(28, "No space left on device")
        return real(job, unit, documents)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_unit", broken)
        with pytest.raises(OSError, match="No space left on device"):
            run_local(run, 3, quiet)
    marks = {path: path.stat().st_mtime_ns for path in Path("out/logs/shards/completions").iterdir()}
    assert {path.name for path in marks} in ({"00000"}, {"00001"}, {"00000", "00001"})
    run_local(run, 3, quiet)
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    assert_same(run, own, tiny)


def test_a_worker_that_dies_is_said(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "write_unit", lambda job, unit, documents: os._exit(9))
    with pytest.raises(
        RuntimeError, match=r"^a worker process died, perhaps out of memory; run the same again, with fewer prepare\.workers$"
    ):
        run_local(config("out"), 2, quiet)


def test_a_second_call_does_nothing(config: Make) -> None:
    report, said = run_local(config("out"), 3, quiet), list[str]()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert run_local(config("out"), 3, said.append) == report
    run_slurm(config("out"), dry_run=True, say=said.append)
    assert said == ["out is prepared already; remove it to prepare it again"] * 2
    steps.Publish(Job(config("out").data, config("out").prepare)).run()  # a task that SLURM started twice
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


def test_a_folder_belongs_to_one_way_of_sharing_the_work(config: Make, tiny: SentencePieceTokenizer) -> None:
    quiz = Path("quiz.jsonl").read_bytes()
    Path("quiz.jsonl").unlink()
    for name, begin in (("out", lambda run: run_local(run, 3, quiet)), ("own", lambda run: prepare(run, quiet))):
        with pytest.raises(DataError, match=r"no such file or folder"):
            begin(config(name))
    with pytest.raises(ConfigError, match=r"^tasks = 2: out was begun with 3; use that, or name another folder$"):
        run_local(config("out"), 2, quiet)
    with pytest.raises(DataError, match=r"^data\.prepared = 'own': was begun on one machine; go on with --executor own"):
        run_local(config("own"), 3, quiet)
    with pytest.raises(DataError, match=r"was begun with other 'prepare' \(keep: "):
        run_local(config("out", **{"prepare.keep": "longest"}), 3, quiet)
    with pytest.raises(ConfigError, match=r"^tasks = 0: must be at least 1$"):
        run_local(config("new"), 0, quiet)
    assert not Path("new").exists()
    Path("quiz.jsonl").write_bytes(quiz)
    prepare(config("out"), quiet)  # what tasks have left does not mislead it
    prepare(config("own"), quiet)
    assert_same(config("out"), config("own"), tiny)


def test_marks_of_work_that_was_removed_are_forgotten(config: Make, tiny: SentencePieceTokenizer) -> None:
    run_local(config("out"), 3, quiet)
    (Path("out") / "manifest.json").unlink()  # and `work` has gone with the last stage
    run_local(config("out"), 2, quiet)
    prepare(config("own"), quiet)
    assert_same(config("out"), config("own"), tiny)


# SLURM


def directives(stage: str) -> dict[str, str]:
    script = Path(f"out/logs/{stage}/launch_script.slurm").read_text()
    assert script.startswith("#!/bin/bash\n")
    return {key: value for key, value in re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE)}


def test_scripts_without_a_cluster(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    options, said = {"partition": "long", "time": "02:30:00", "mem-per-cpu": "8G", "account": "x1", "exclusive": ""}, list[str]()
    heard = list[str]()
    logger.add(heard.append)  # what datatrove would log
    run_slurm(config("out", **{"prepare.workers": 0}), 3, options, dry_run=True, say=said.append)
    assert heard == []
    buckets = 2 + Job(config("out").data, config("out").prepare).lsh.bands  # type: ignore[union-attr]
    tasks = {"read": 3, "pairs": buckets, "clusters": 1, "shards": 3, "publish": 1}
    for stage, number in tasks.items():
        folder = tmp_path / "out" / "logs" / stage
        expected = {
            "array": f"0-{number - 1}", "job-name": f"slm2-{stage}", "cpus-per-task": "1", "nodes": "1", "requeue": "",
            "partition": "long", "time": "02:30:00", "mem-per-cpu": "8G", "account": "x1", "exclusive": "",
            "chdir": str(tmp_path), "kill-on-invalid-dep": "yes",
            "output": f"{folder}/slurm_logs/%A_%a.out", "error": f"{folder}/slurm_logs/%A_%a.out",
        }  # fmt: skip
        assert directives(stage) == expected
        command = (folder / "launch_script.slurm").read_text().splitlines()[-1]
        assert command.split() == ["srun", "-l", "-n", "1", "launch_pickled_pipeline", str(folder / "executor.pik")]
        assert json.loads((folder / "ranks_to_run.json").read_text()) == list(range(number))
        with (folder / "executor.pik").open("rb") as file:
            executor = dill.load(file)  # written a moment ago, by us
        assert (executor.world_size, executor.depends) == (number, None)
    assert f'export PATH={Path(sys.executable).parent}:"$PATH"' in Path("out/logs/read/launch_script.slurm").read_text()
    lines = Path("out/logs/submit.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    for number, stage in enumerate(tasks):
        after = f" --dependency=afterok:$job{number - 1}" if number else ""
        script = f"{tmp_path}/out/logs/{stage}/launch_script.slurm"
        assert lines[3 + number] == f"job{number}=$(sbatch --parsable --export=ALL,RUN_OFFSET=0{after} {script})"
        assert said[number].split() == [f"slm2-{stage}", "|", str(tasks[stage]), f"task{'s' * (tasks[stage] > 1)}", "|", script]
    assert said[5:] == [f"nothing was submitted; to do it, in this order: bash {tmp_path}/out/logs/submit.sh"]
    assert not list(Path("out/work/text").glob("*"))  # nothing was read here


def test_defaults_and_more_tasks_than_an_array_has(config: Make) -> None:
    run_slurm(config("out"), dry_run=True, say=quiet)
    assert "partition" not in directives("read")
    assert [directives("read")[key] for key in ("time", "mem-per-cpu", "array")] == ["24:00:00", "4G", "0-7%2"]  # 8 inputs, 2 workers
    run_slurm(config("big"), 2500, dry_run=True, say=quiet)
    with Path("big/logs/read/executor.pik").open("rb") as file:
        executor = dill.load(file)
    assert (executor.tasks, executor.tasks_per_job) == (2500, 3)
    assert "#SBATCH --array=0-833%2\n" in Path("big/logs/read/launch_script.slurm").read_text()  # 834 jobs of three tasks or less
    assert Path("big/logs/submit.sh").read_text().count("sbatch") == 5  # one array each: a stage depends on all of the one before


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Programs of these names, before all others."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_stages_are_submitted_in_a_chain(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a program in the place of `sbatch` that writes down what it is told, and answers with a number."""
    sbatch = f'echo "$@" >> {tmp_path}/told\necho "Submitted batch job $((100 + $(wc -l < {tmp_path}/told)))"\n'
    put_on_path(tmp_path / "bin", monkeypatch, sbatch=sbatch)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")  # as in a shell on a compute node
    said = list[str]()
    run_slurm(config("out"), 3, say=said.append)
    told = [line.rpartition(" ")[0] for line in Path("told").read_text().splitlines()]
    assert told == [
        "--export=ALL,RUN_OFFSET=0",
        *(f"--export=ALL,RUN_OFFSET=0 --dependency=afterok:{number}" for number in range(101, 105)),
    ]
    assert [line.rpartition(" | ")[2] for line in said] == [f"job {number}" for number in range(101, 106)]
    # Read has been done since then, and of the pairs all tasks but one.
    for stage, done in (("read", range(3)), ("pairs", range(1, 40))):
        (Path("out/logs") / stage / "completions").mkdir()
        for rank in done:
            (Path("out/logs") / stage / "completions" / f"{rank:05d}").touch()
    Path("told").unlink()
    run_slurm(config("out"), 3, say=said.append)
    assert Path("told").read_text().splitlines()[0].split()[:-1] == ["--export=ALL,RUN_OFFSET=0"]
    assert len(Path("told").read_text().splitlines()) == 4
    assert [line.rpartition(" | ")[2] for line in said[5:]] == ["complete", "job 101", "job 102", "job 103", "job 104"]
    assert json.loads(Path("out/logs/pairs/ranks_to_run.json").read_text()) == [0]
    assert directives("pairs")["array"] == "0-0%2"


def test_sbatch_that_refuses(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, sbatch="echo 'invalid partition' >&2\nexit 3\n")
    with pytest.raises(RuntimeError, match=r"^sbatch ended with 3, what it said is above; mend that and run the same again$"):
        run_slurm(config("out"), say=quiet)


def test_a_folder_that_scripts_cannot_name(config: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.prepared = 'my data': datatrove's scripts do not quote it; name a folder without blanks$"
    ):
        run_slurm(config("my data"), dry_run=True, say=quiet)
    assert not Path("my data").exists()


@pytest.mark.slow
def test_the_scripts_run_as_they_stand(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: SentencePieceTokenizer) -> None:
    """All of it, with programs in the place of SLURM's: one that runs the elements of an array at once, one after another."""
    exact = {"prepare.duplicates": "exact"}
    run_slurm(config("out", **exact), 2, dry_run=True, say=quiet)
    sbatch = f"""
script="${{@: -1}}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for i in $(seq 0 $last); do
    SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=here bash "$script" >> {tmp_path}/log 2>&1 || exit 1
done
echo 1
"""
    put_on_path(tmp_path / "bin", monkeypatch, sbatch=sbatch, srun='shift 3\nexec "$@"\n', scontrol="echo here\n")
    done = subprocess.run(["bash", "out/logs/submit.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (tmp_path / "log").read_text()[-2000:]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    prepare(config("own", **exact), quiet)
    assert_same(config("out", **exact), config("own", **exact), tiny)


# The command line


def arguments(*words: str) -> list[str]:
    sources = '{books = {path = "books.jsonl"}, code = {languages = ["code"]}}'
    return ["prepare", "tiny", *words, "--data.prepared", "out", "--data.sources", sources, "--prepare.workers", "2"]


def test_the_command_line(config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert (
        main(arguments("--executor", "slurm", "--dry-run", "--tasks", "2", "--partition", "long", "--time", "1:00", "--sbatch", "qos=high"))
        == 0
    )
    out, err = capfd.readouterr()
    assert err == ""
    assert "submit.sh" in out.splitlines()[-1]
    assert [directives("shards")[key] for key in ("partition", "time", "qos")] == ["long", "1:00", "high"]
    assert main(arguments("--executor", "local", "--tasks", "2")) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines()[-3].startswith("source ")
    assert Path("out/manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "2"], "--tasks: means nothing to --executor own; leave it out, or use slurm"),
        (["--executor", "local", "--dry-run"], "--dry-run: means nothing to --executor local; leave it out, or use slurm"),
        (["--executor", "local", "--tasks", "0"], "tasks = 0: must be at least 1"),
        (["--executor", "slurm"], "executor = 'slurm': there is no sbatch on this machine; go to a login node, or add --dry-run"),
    ],
)
def test_wrong_words(
    tmp_path: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert main(arguments(*words)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"slm2: {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_datatrove(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "slm2_minimal.data.cluster")
    for name in [name for name in sys.modules if name.split(".")[0] == "datatrove"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(arguments("--executor", "local")) == 2
    assert capfd.readouterr().err == (
        "slm2: prepare with --executor local or slurm needs the package 'datatrove': pip install 'slm2-minimal[cluster]'\n"
    )
