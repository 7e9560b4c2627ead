"""`slm2 evaluate`: what it takes, and what it prints and writes."""

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.config.overrides import integer
from slm2_minimal.config.paths import expand

if TYPE_CHECKING:
    from slm2_minimal.evaluate.results import Results

SUMMARY = "score a model by tasks, or two models on the same items"


def add_options(add: Callable[..., Any]) -> None:
    model = (
        "a run's folder (its best checkpoint), a checkpoint, a folder in Hugging Face's format,"
        " one of slm2 quantise, or a Hub id"
    )
    tasks = (
        "separated by commas: local (all that need no network), report_leaderboard,"
        " report_multilingual, any name of lm-evaluation-harness, or a YAML file"
    )
    shots = "examples before each item (default: the task's own number; one that says 0 stays)"
    format = "ask as in a conversation: zephyr, chatml or plain (default: as plain text)"
    tokenizer = "arcade100k, tiny, a file or a folder; left out: the model's own"
    add("model", help=model)
    add("other", nargs="?", help="a second model, to be compared with the first")
    add("--tasks", required=True, metavar="NAMES", help=tasks)
    add("--limit", type=integer, metavar="N", help="the first N items of each task alone")
    add("--shots", type=integer, metavar="K", help=shots)
    add("--out", metavar="FILE", help="JSON to write: results, and the values of every item")
    add("--format", choices=("zephyr", "chatml", "plain"), help=format)
    add("--tokenizer", help=tokenizer)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")


def evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    """Run the tasks one by one, and print and write what each gives as soon as it is
    there.

    Raises:
        ConfigError, DataError, CheckpointError: an option, a task, a model or a
        tokenizer that cannot be. What was written before stays.
    """
    # Bars of others: what takes long here says so itself.
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    from slm2_minimal.evaluate.results import difference_lines, load_tasks

    # what may be refused before a model is loaded
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"limit = {options.limit}: must be at least 1; give a number of items")
    if options.shots is not None and options.shots < 0:
        raise ConfigError(f"shots = {options.shots}: must not be negative; 0 is none")
    out = None if options.out is None else _new_file(expand(options.out, "out"))
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"tasks = {options.tasks!r}: none; name at least one, as local")
    sources = [options.model] if options.other is None else [options.model, options.other]
    loaded = load_tasks(names, options.shots)

    found: list[Results] = []
    for source in sources:
        for results in _results(source, loaded, options):
            _write(out, [*found, results])
        found.append(results)
    if len(found) == 2:
        print("\n".join(difference_lines(*found)))
    if out is not None:
        print(f"{out}: results, and the values of every item")


def _results(
    source: str, loaded: Mapping[str, Any], options: argparse.Namespace
) -> Iterator["Results"]:
    """Those of one model, printed, so far after each task."""
    from slm2_minimal.distributed.pretrained import load_with_tokenizer
    from slm2_minimal.evaluate.harness import SLM2
    from slm2_minimal.evaluate.results import HEADER, describe, run_tasks, suite_lines, task_lines

    model, tokenizer = load_with_tokenizer(
        expand(source, "model"), options.tokenizer, options.device
    )
    lm = SLM2(model, tokenizer, format=options.format)
    about = describe(source, lm, limit=options.limit)
    print(f"{source}: {about['config']['num_parameters']:,} parameters\n{HEADER}", flush=True)

    printed: set[str] = set()
    for results in run_tasks(lm, loaded, limit=options.limit):
        for name in results["results"]:
            if name not in printed:
                print("\n".join(task_lines(results, name)), flush=True)
                printed.add(name)
        yield about | results
    for line in suite_lines(results):
        print(line)


def _write(out: Path | None, found: Sequence["Results"]) -> None:
    """The first model's results lie on top, as the harness writes them; beside them
    those of the second, and what they differ by.
    """
    from slm2_minimal.evaluate.results import differences
    from slm2_minimal.files import write_json

    if out is None:
        return
    content = dict(found[0])
    if len(found) == 2:
        content |= {"other": found[1], "differences": differences(*found)}
    write_json(out, content)


def _new_file(name: str) -> Path:
    path = Path(name)
    if path.exists():
        raise DataError(f"out = {name!r}: is there already; name another file")
    if not path.absolute().parent.is_dir():
        raise DataError(f"out = {name!r}: no such folder {str(path.parent)!r}; make it first")
    return path
