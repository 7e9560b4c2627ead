"""`slm2 evaluate`: what it prints and writes, and what it refuses."""

import functools
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager

from slm2_minimal.distributed.pretrained import load_with_tokenizer
from slm2_minimal.evaluate import results
from slm2_minimal.evaluate.harness import SLM2
from slm2_minimal.evaluate.results import differences, load_tasks, metrics, suite_lines
from slm2_minimal.evaluate.score import rolling
from slm2_minimal.files import read_json
from slm2_minimal.report import SUITES
from tests.commands import Run, contents, is_refused, says

CHOICE = {
    "custom_dataset": "ITEMS",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ITEMS = [
    {"context": f"{n} + 1 =", "choices": [str(n + 1), "no", "week", "rained"], "answer": n % 4}
    for n in range(12)
]
LOAD = """import datasets
def load(items, **_):
    return {"test": datasets.Dataset.from_list(items)}
"""


def write_task(folder: Path, name: str, items: list[dict[str, Any]], **changes: Any) -> Path:
    """A task of the harness whose items stand in its own file."""
    (folder / "of_a_test.py").write_text(LOAD)
    content = {"task": name, **CHOICE, "dataset_kwargs": {"items": items}, **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.dump(content).replace("ITEMS", "!function of_a_test.load"))
    return path


@pytest.fixture
def choice(tmp_path: Path) -> Path:
    return write_task(tmp_path, "choice", ITEMS)


@pytest.fixture
def short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own list of tasks takes half a minute to read."""
    short = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", short)


def test_what_is_printed_and_written(
    slm2: Run, run_folder: Path, choice: Path, tmp_path: Path
) -> None:
    """The same as the harness's own `simple_evaluate` of the model."""
    out = tmp_path / "results.json"
    code, printed, _ = slm2("evaluate", run_folder, "--tasks", choice, "--out", out)
    assert code == 0
    written = read_json(out)
    assert written["model"] == str(run_folder)
    assert written["software"]["lm_eval"] == lm_eval.__version__
    assert written["n-samples"]["choice"] == {"original": 12, "effective": 12}

    lm = SLM2(*load_with_tokenizer(str(run_folder), device="cpu"))
    loaded = load_tasks([str(choice)])
    [task] = loaded["tasks"].values()
    theirs = lm_eval.simple_evaluate(
        lm, tasks=[task], task_manager=TaskManager(None, str(tmp_path), False)
    )
    assert written["results"]["choice"] == theirs["results"]["choice"]
    for metric, values in written["items"]["choice"].items():
        assert len(values) == 12
        assert sum(values) / 12 == pytest.approx(written["results"]["choice"][metric])
        name = metric.removesuffix(",none")
        error = written["results"]["choice"][f"{name}_stderr,none"]
        assert f"{name:<24} {sum(values) / 12:>9.4f} {error:>8.4f}" in printed


def test_two_models(slm2: Run, run_folder: Path, choice: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    older = run_folder / "step-00000002"
    assert slm2("evaluate", older, older, "--tasks", choice, "--out", out, "--limit", 8)[0] == 0
    written = read_json(out)
    assert written["other"]["results"] == written["results"]
    assert written["differences"]["choice"]["acc,none"] == {
        "mean": 0, "error": 0, "low": 0, "high": 0
    }  # fmt: skip
    assert written["n-samples"]["choice"]["effective"] == 8


def test_bits_per_byte(slm2: Run, run_folder: Path, tmp_path: Path) -> None:
    """Against a sum over the tokens."""
    texts = ["Dear friend 3, it rained all week.", "It rained. " * 20]
    of_texts = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_choice": None,
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    }
    path = write_task(tmp_path, "rolling", [{"text": text} for text in texts], **of_texts)
    out = tmp_path / "results.json"
    assert slm2("evaluate", run_folder, run_folder, "--tasks", path, "--out", out)[0] == 0
    written = read_json(out)

    model, tokenizer = load_with_tokenizer(str(run_folder), device="cpu")
    nats = -sum(rolling(model, tokenizer.encode(text)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    found = written["results"]["rolling"]
    assert found["bits_per_byte,none"] == pytest.approx(nats / size / math.log(2))
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    assert found["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert list(written["differences"]["rolling"]) == ["bits_per_byte,none"]


def test_texts_and_shots(slm2: Run, run_folder: Path, tmp_path: Path) -> None:
    text = {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": None,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    path = write_task(tmp_path, "texts", ITEMS[:3], **text)
    code, printed, _ = slm2("evaluate", run_folder, "--tasks", path, "--shots", 1)
    assert code == 0
    assert f"{'texts':<32} {1:>5} {3:>6}  exact_match" in printed

    path = write_task(tmp_path, "no_shots", ITEMS[:3], num_fewshot=0)
    code, printed, complaint = slm2("evaluate", run_folder, "--tasks", path, "--shots", 1)
    assert f"{'no_shots':<32} {0:>5}" in printed
    assert "warning: shots = 1: not of tasks that say 0 themselves: no_shots\n" in complaint


def test_a_conversation(
    slm2: Run, run_folder: Path, choice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode = SLM2.tok_encode
    monkeypatch.setattr(
        SLM2, "tok_encode", lambda self, text, *_, **__: read.append(text) or encode(self, text)
    )
    words = ("evaluate", run_folder, "--tasks", choice, "--limit", 1)
    assert slm2(*words)[0] == slm2(*words, "--format", "plain")[0] == 0
    assert "0 + 1 = 1" in read
    assert "User: 0 + 1 =\nAssistant:1" in read  # the harness leaves out the space


def test_local_tasks_are_there(slm2: Run, run_folder: Path) -> None:
    words = ["local_cloze_en,local_arithmetic", "--limit", 1]
    code, printed, _ = slm2("evaluate", run_folder, "--tasks", *words)
    assert code == 0
    assert "local_arithmetic_4" in printed
    assert "reading the harness's list" not in printed


# What is refused


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--tasks", "local_clozee"], ["tasks = 'local_clozee': unknown", "local_cloze"]),
        (["--tasks", "qqqqqqqq"], ["tasks = 'qqqqqqqq': unknown; `lm_eval ls tasks` lists"]),
        (["--tasks", "local,missing.yaml"], ["tasks = 'missing.yaml': unknown"]),
        (["--tasks", " , "], ["tasks = ' , ': none"]),
        (["--tasks", "local_order,local_order_de"], ["has 'local_order_de', as another one"]),
        (["--tasks", "local", "--limit", "0"], ["limit = 0: must be at least 1"]),
        (["--tasks", "local", "--shots", "-1"], ["shots = -1: must not be negative"]),
        (["--tasks", "local", "--out", "file"], ["out = 'file': is there already"]),
        (["--tasks", "local", "--out", "a/b.json"], ["out = 'a/b.json': no such folder 'a'"]),
        (["--tasks", "local", "--format", "xml"], ["--format: invalid choice: 'xml'"]),
        (["--tasks", "local_cloze_en", "--tokenizer", "nowhere"], ["tokenizer = 'nowhere'"]),
        ([], ["--tasks"]),
    ],
)
def test_words(
    words: list[str], parts: list[str], here: Path, short_list: None,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line = is_refused(["evaluate", "run", *words], here, capfd)
    for part in parts:
        assert part in line


def test_a_model_without_a_tokenizer(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = is_refused(["evaluate", "hub", "--tasks", "local_cloze_en"], here, capfd)
    assert "tokenizer: 'hub' has none, and its 1024 ids are not arcade100k's; name the" in line


def test_no_network(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """As the harness's own tasks are, from a set on the Hub."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    content = {"task": "far", **CHOICE, "custom_dataset": None, "dataset_path": "owner/far"}
    (here / "far.yaml").write_text(yaml.dump(content))
    line = is_refused(["evaluate", "run", "--tasks", "far.yaml"], here, capfd)
    assert "tasks = 'far.yaml': cannot be loaded (" in line
    assert "'owner/far' on the Hub" in line
    assert "name tasks that need no network: local" in line


@pytest.mark.parametrize("choices", [[], ["a", ""]])
def test_nothing_to_choose(choices: list[str], here: Path, capfd: Any) -> None:
    items = [*ITEMS[:2], {"context": "a", "choices": choices, "answer": 0}]
    write_task(here, "empty_choice", items)
    line = is_refused(["evaluate", "run", "--tasks", "empty_choice.yaml"], here, capfd)
    assert f"tasks = 'empty_choice': item 2 has the choices {choices!r}; give" in line


def test_results_so_far_are_kept(slm2: Run, here: Path, choice: Path) -> None:
    """A second task has an item that no window holds."""
    long = {"context": "a", "choices": ["b", "rained " * 100], "answer": 0}
    write_task(here, "too_long", [*ITEMS[:1], long])
    tasks = f"{choice},too_long.yaml"
    before = contents(here)
    result = slm2("evaluate", "run", "--tasks", tasks, "--out", "results.json")
    line = "tasks = 'too_long': cannot be run: requests[5].continuation = "
    says(result, 2, line, "must have from 1 to 64, the window")
    assert f"{'choice':<32} {0:>5} {12:>6}  acc " in result[1]
    assert set(contents(here)) - set(before) == {here / "results.json"}
    assert list(read_json(here / "results.json")["results"]) == ["choice"]


def test_without_the_extra(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    for name in ("harness", "results"):
        monkeypatch.delitem(sys.modules, f"slm2_minimal.evaluate.{name}", raising=False)
    line = is_refused(["evaluate", "run", "--tasks", "local"], here, capfd)
    assert "needs the package 'lm-eval': pip install 'slm2-minimal[evaluate]'" in line


# What the results are made of


def fake(items: dict[str, dict[str, list[Any]]], found: dict[str, dict[str, float]]) -> Any:
    groups = {"group": list(items)}
    return {"items": items, "results": found, "group_subtasks": groups}


def test_differences_of_groups_and_of_what_is_no_mean() -> None:
    a = fake(
        {"x": {"acc,none": [0, 1]}, "y": {"acc,none": [0, 0, 0], "ppl,none": [-1, -2, -3]}},
        {
            "x": {"acc,none": 0.5}, "y": {"acc,none": 0.0, "ppl,none": math.exp(2)},
            "group": {"acc,none": 0.2, "acc_stderr,none": 0.1},
        },
    )  # fmt: skip
    b = json.loads(json.dumps(a))
    b["items"]["y"]["acc,none"] = [1, 0, 0]
    found = differences(a, b)
    assert found["x"]["acc,none"]["mean"] == 0
    assert found["y"]["acc,none"]["mean"] == pytest.approx(1 / 3)
    assert list(found["y"]) == ["acc,none"]
    assert found["group"]["acc,none"]["mean"] == pytest.approx(1 / 5)
    assert dict(metrics(a["results"]["group"])) == {"acc,none": 0.2}


def test_suites() -> None:
    """A mean of one metric a task, and of the cells of all groups in it."""
    found = {"a": {"acc,none": 0.2}, "b": {"acc,none": 0.4}, "c": {"acc_norm,none": 0.9}}
    inner = Group("in", metadata={"metrics": {"a": "acc,none", "b": "acc,none"}})
    other = Group("other", metadata={"metrics": {"c": "acc_norm,none"}})
    outer = Group("outer")
    outer.add(inner)
    outer.add(other)
    assert results._suite(inner, found) == pytest.approx({"mean": 0.3, "a": 0.2, "b": 0.4})
    assert results._suite(outer, found) == pytest.approx({"mean": 0.5, "in": 0.3, "other": 0.9})
    assert results._suite(Group("none"), found) == {}


def test_published_rows_stand_below() -> None:
    values = {name: 0.1 * n for n, name in enumerate(SUITES["report_leaderboard"].columns, 1)}
    text = "\n".join(suite_lines({"suites": {"report_leaderboard": values, "in": {"mean": 1}}}))
    assert "this model                            10.00      20.00" in text
    assert "stablelm-2-1_6b                       45.54      43.43      70.49" in text
    assert "confirmed: model cards" in text


@pytest.mark.slow
def test_the_harness_own_list(here: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    line = is_refused(["evaluate", "run", "--tasks", "arc_eazy"], here, capfd)
    assert "tasks = 'arc_eazy': unknown; the nearest are arc_easy" in line
    line = is_refused(["evaluate", "run", "--tasks", "report_leaderboard"], here, capfd)
    assert "tasks = 'report_leaderboard': cannot be loaded (" in line
