"""The report's suites: names, shots and metrics as lm-eval's registry has them, without
their data, which are on the Hub.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.api.task import ConfigurableTask, TaskConfig
from lm_eval.tasks import TaskManager

from slm2_minimal.evaluate import local_tasks

OURS = local_tasks.FOLDER.parent
LM_EVAL = Path(lm_eval.tasks.__file__).parent
# The folders of the tasks that the suites name: all of them take long to read
FOLDERS = (
    "arc",
    "gsm8k",
    "hellaswag",
    "lambada_multilingual_stablelm",
    "mmlu/default",
    "okapi",
    "truthfulqa",
    "winogrande",
)
SHOTS = {
    "arc_challenge": 25,
    "hellaswag": 10,
    "mmlu": 5,
    "truthfulqa_mc2": 0,
    "winogrande": 5,
    "gsm8k": 5,
}


@pytest.fixture(scope="module")
def suites() -> Iterator[Mapping[str, Any]]:
    """The groups `report_*` with their tasks, whose data nobody asks for."""

    def without_data(task: ConfigurableTask, config: dict[str, Any]) -> None:
        task._config = TaskConfig(**config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigurableTask, "__init__", without_data)
        folders: list[str | Path] = [OURS, *(LM_EVAL / folder for folder in FOLDERS)]
        tasks = TaskManager(include_path=folders, include_defaults=False)
        yield {
            name: tasks.load(name)["groups"]
            for name in ("report_leaderboard", "report_multilingual")
        }


def test_shots_of_the_leaderboard(suites: Mapping[str, Any]) -> None:
    suite = suites["report_leaderboard"]["report_leaderboard"]
    assert suite.child_names == list(SHOTS)
    shots = {task.task_name: task.config.num_fewshot for task in suite.get_all_tasks()}
    mmlu = [name for name in shots if name.startswith("mmlu_")]
    assert len(mmlu) == 57
    assert {name: shots.get(name, shots[mmlu[0]]) for name in SHOTS} == SHOTS
    assert {shots[name] for name in mmlu} == {SHOTS["mmlu"]}


def test_cells_of_the_languages(suites: Mapping[str, Any]) -> None:
    groups = suites["report_multilingual"]
    languages = groups["report_multilingual"].child_names
    assert languages == [f"report_multilingual_{one}" for one in local_tasks.LANGUAGES]
    cells = {name: groups[name].get_all_tasks() for name in languages}
    four = {"report_multilingual_nl", "report_multilingual_pt"}  # no LAMBADA
    assert {name for name, tasks in cells.items() if len(tasks) == 4} == four
    assert sum(map(len, cells.values())) == 33
    assert {task.config.num_fewshot for tasks in cells.values() for task in tasks} == {0}


@pytest.mark.parametrize("language", local_tasks.LANGUAGES)
def test_cells_read_their_own_language(suites: Mapping[str, Any], language: str) -> None:
    group = suites["report_multilingual"][f"report_multilingual_{language}"]
    for task in group.get_all_tasks():
        assert task.config.dataset_path, task.task_name
        if task.task_name not in SHOTS:  # the English originals name no language
            assert task.config.dataset_name == language


def test_metrics_are_the_tasks_own(suites: Mapping[str, Any]) -> None:
    for suite in suites.values():
        for group in suite.values():
            metrics = group.metadata.get("metrics", {})
            if metrics:
                assert list(metrics) == group.child_names
            for task in group.get_all_tasks() if metrics else ():
                name = next(name for name in metrics if task.task_name.startswith(name))
                metric, _, chosen = metrics[name].partition(",")
                filters = task.config.filter_list or [{"name": "none"}]
                assert metric in {entry["metric"] for entry in task.config.metric_list}
                assert chosen in {entry["name"] for entry in filters}


def test_suites_say_what_was_not_run() -> None:
    for name in ("report_leaderboard", "report_multilingual"):
        text = (OURS / "report" / f"{name}.yaml").read_text(encoding="utf-8")
        assert "never run here" in text
