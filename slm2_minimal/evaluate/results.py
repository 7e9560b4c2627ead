"""Tasks run one after the other, results as lm-evaluation-harness writes them, and two
models side by side.

Tasks and groups are the harness's own, and those of the folder `tasks` beside this
file. Their names are its names, and so are their numbers: nothing is counted here that
it counts.
"""

import datetime
import difflib
import logging
import math
import platform
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm2_minimal.config import DataError, MissingExtraError, UserError
from slm2_minimal.evaluate.harness import SLM2
from slm2_minimal.evaluate.statistics import mean_and_error, paired_difference
from slm2_minimal.report import SUITES, SUITES_STATUS

TASKS = Path(__file__).parent / "tasks"
LOCAL = TASKS / "local"  # those that need no network
# What is kept of the harness's own results, each by task.
PARTS = ("results", "versions", "n-shot", "higher_is_better", "n-samples")
SEED = 1234  # the harness's own, of examples that are shown and of texts that are drawn
BOOTSTRAP = 1_000  # resamples, for metrics whose error has no formula

HEADER = f"{'task':<32} {'shots':>5} {'items':>6}  {'metric':<24} {'value':>9} {'error':>8}"

Results = dict[str, Any]  # what a JSON file holds
logger = logging.getLogger(__name__)


def load_tasks(names: Sequence[str], shots: int | None = None) -> dict[str, Any]:
    """Tasks and groups by name, or by the path of a YAML file: what
    `lm_eval.tasks.TaskManager.load` gives. Their items are read, from the Hub where
    they lie there. `shots` examples stand before each item in place of the task's own
    number, but for tasks that say 0.

    Raises:
        DataError: an unknown name, items that cannot be had, or an item of multiple
        choice that has nothing to choose.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtraError("lm-eval", "evaluate", "evaluating by tasks") from None

    logging.getLogger("lm_eval.api.task").addFilter(_is_news)
    # the harness's own list takes a while, which local tasks need not wait for
    manager = TaskManager(include_path=LOCAL, include_defaults=False)
    if _unknown(names, manager.all_tasks):
        logger.info("reading the harness's list of tasks")
        manager = TaskManager(include_path=TASKS)
    for name in _unknown(names, manager.all_tasks):
        near = difflib.get_close_matches(name, manager.all_tasks, 4, 0.5)
        raise DataError(
            f"tasks = {name!r}: unknown; "
            + (f"the nearest are {', '.join(near)}" if near else "`lm_eval ls tasks` lists them")
        )

    loaded: dict[str, Any] = {"tasks": {}, "groups": {}}
    for name in names:
        try:
            own = manager.load([name])
        except Exception as error:  # a task is a program of others
            raise DataError(
                f"tasks = {name!r}: cannot be loaded ({_reason(error)}); where its items lie on the"
                " Hub, connect once, or name tasks that need no network: local"
            ) from None
        for twice in loaded["tasks"].keys() & own["tasks"].keys():
            raise DataError(
                f"tasks = {name!r}: has {twice!r}, as another one here; run one after the other"
            )
        for part, entries in loaded.items():
            entries.update(own[part])
    for name, task in loaded["tasks"].items():
        _check_choices(name, task)
    _set_shots(loaded["tasks"], shots)
    return loaded


def run_tasks(
    lm: SLM2, loaded: Mapping[str, Any], *, limit: int | None = None
) -> Iterator[Results]:
    """All results so far, after each task of `load_tasks`, and at the end by group.

    `limit`: the first items of each task alone. `items` are the values of every item,
    in their order, by task and metric; `group_subtasks` all tasks of a group; `suites`
    the means of the report's suites, and what they are means of.

    Raises:
        DataError: a task that cannot be run with this model.
    """
    from lm_eval.evaluator import evaluate

    random.seed(0)
    np.random.seed(SEED)  # noqa: NPY002  what the harness draws from
    torch.manual_seed(SEED)
    results: Results = {part: {} for part in (*PARTS, "items", "group_subtasks", "suites")}
    for name, task in loaded["tasks"].items():
        task.set_fewshot_seed(seed=SEED)
        try:
            found = evaluate(
                lm,
                {"tasks": {name: task}},
                limit=limit,
                bootstrap_iters=BOOTSTRAP,
                apply_chat_template=lm.format is not None,
            )
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, UserError) else _reason(error)
            raise DataError(f"tasks = {name!r}: cannot be run: {reason}") from error
        for part in PARTS:
            results[part].update(found[part])
        results["items"][name] = _items(found["samples"][name])
        yield results

    # groups are means of what is there by now
    for name, group in loaded["groups"].items():
        if group.has_aggregation:
            results["group_subtasks"][name] = [task.task_name for task in group.get_all_tasks()]
            results["results"][name] = dict(group.aggregate(results["results"]))
    for name, group in loaded["groups"].items():
        if suite := _suite(group, results["results"]):
            results["suites"][name] = suite
    yield results


def describe(model: str, lm: SLM2, *, limit: int | None) -> Results:
    """What a result depends on beside its tasks."""
    device = lm.device
    return {
        "model": model,
        "config": {
            "num_parameters": lm.model.config.num_parameters(),
            "tokenizer": lm.tokenizer.name,
            "max_length": lm.max_length,
            "format": lm.format,
            "limit": limit,
        },
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "machine": f"{torch.get_num_threads()} threads of {platform.machine()}"
        if device.type == "cpu"
        else torch.cuda.get_device_name(device),
        "software": {name: version(name) for name in ("slm2-minimal", "lm_eval", "torch")},
    }


def differences(a: Results, b: Results) -> dict[str, dict[str, dict[str, float]]]:
    """b - a by task or group and metric, each a `Difference` over the same items.

    Of every metric that is a mean over two items or more, and of bits per byte. Others,
    as perplexity, are left out.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, theirs in b["results"].items():
        found[name] = {}
        for metric, _ in metrics(theirs):
            first, second = (_values(each, name, metric) for each in (a, b))
            weights = None
            if len(first) < 2:  # a group's that no task has, or no error
                continue

            # a ratio of bits to bytes, or a mean; no other has items to compare
            if metric.startswith("bits_per_byte,"):
                weights = [size for _, size in first]
                first, second = (
                    [-nats / math.log(2) for nats, _ in each] for each in (first, second)
                )
            elif not _is_mean(first, a["results"][name][metric]):
                continue
            found[name][metric] = paired_difference(first, second, weights)._asdict()
    return found


# Tables


def task_lines(results: Results, name: str) -> Iterator[str]:
    """A line for every metric of a task or group."""
    found = results["results"][name]
    for key, value in metrics(found):
        metric, _, filter = key.partition(",")
        error = found.get(f"{metric}_stderr,{filter}")
        label = metric if filter in ("", "none") else f"{metric} ({filter})"
        yield (
            f"{name:<32} {results['n-shot'].get(name, ''):>5} {found.get('sample_len', ''):>6} "
            f" {label:<24} {value:>9.4f} {_number(error):>8}"
        )


def difference_lines(a: Results, b: Results) -> Iterator[str]:
    """The second model beside the first."""
    found = differences(a, b)
    yield f"{'task':<32} {'metric':<18} {'first':>9} {'second':>9} {'change':>9}  95% interval"
    for name, both in a["results"].items():
        for key, value in metrics(both):
            change = found.get(name, {}).get(key)
            other = b["results"][name][key]
            shown = ""
            if change is not None:
                shown = f"{change['low']:+.4f} to {change['high']:+.4f}"
            if change is not None and change["error"] == 0:
                shown = "no item differs"
            yield (
                f"{name:<32} {key.removesuffix(',none'):<18} {value:>9.4f} {other:>9.4f}"
                f" {other - value:>+9.4f}  {shown}"
            ).rstrip()


def suite_lines(results: Results) -> Iterator[str]:
    """The report's suites in percent, and the published rows below."""
    for name, found in results["suites"].items():
        if name in SUITES:
            columns, published = SUITES[name]
            yield f"{name:<32}" + "".join(f"{column:>11}" for column in columns)
            ours = tuple(100 * value for value in found.values())
            for model, row in {"this model": ours, **published}.items():
                yield f"{model:<32}" + "".join(f"{value:>11.2f}" for value in row)
            yield f"Below this model: {SUITES_STATUS}"


def metrics(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The values of a task by `metric,filter`, without their errors."""
    for key, value in found.items():
        if "," in key and "_stderr," not in key and isinstance(value, float | int):
            yield key, float(value)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) and math.isfinite(value) else "-"


# What the harness leaves open


def _unknown(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those that are neither a task's name nor a YAML file."""
    files = (".yaml", ".yml")
    return [n for n in names if n not in known and not (n.endswith(files) and Path(n).is_file())]


def _reason(error: BaseException) -> str:
    """An error of the harness in a few words."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _suite(group: Any, found: Mapping[str, Any]) -> dict[str, float]:
    """The mean of a group whose file names one metric of each task, and its parts: the
    tasks, or the groups in it that have such means themselves.
    """
    own = (group.metadata or {}).get("metrics", {})
    parts = {task: found[task][metric] for task, metric in own.items()}
    cells = list(parts.values())
    for child in group.get_all_groups(recursive=False):
        if suite := _suite(child, found):
            parts[child.name], *values = suite.values()
            cells += values
    return {"mean": sum(cells) / len(cells), **parts} if cells else {}


def _is_news(record: logging.LogRecord) -> bool:
    """Not so of a hint that comes with every task whose items a function makes."""
    return "Custom kwargs can be passed" not in record.getMessage()


def _check_choices(name: str, task: Any) -> None:
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    for number, item in enumerate(task.eval_docs):
        choices = task.doc_to_choice(item)
        if not choices or not all(choices):
            raise DataError(
                f"tasks = {name!r}: item {number} has the choices {choices!r}; give every item at"
                " least one, none of them empty"
            )


def _set_shots(tasks: Mapping[str, Any], shots: int | None) -> None:
    """As `lm_eval.simple_evaluate` does it."""
    fixed = []
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if own == 0:
            fixed.append(name)
        elif shots is not None or own is None:
            task.set_config(key="num_fewshot", value=shots or 0)
    if shots and fixed:
        logger.warning(
            "shots = %d: not of tasks that say 0 themselves: %s", shots, ", ".join(fixed)
        )


def _items(samples: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of every item by `metric,filter`."""
    values: dict[str, list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault(f"{metric},{sample['filter']}", []).append(sample[metric])
    return values


def _values(results: Results, name: str, metric: str) -> list[Any]:
    """The items of a task, or of all tasks of a group that have the metric."""
    tasks = results["group_subtasks"].get(name, [name])
    return [value for task in tasks for value in results["items"][task].get(metric, ())]


def _is_mean(values: Sequence[Any], result: float) -> bool:
    """Whether a task's result is the mean of its items."""
    if not all(isinstance(value, float | int) for value in values):
        return False
    return math.isclose(mean_and_error(values).mean, result, rel_tol=1e-9, abs_tol=1e-9)
