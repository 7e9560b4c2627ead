"""The command line `slm2`: parses and calls, nothing else.

Exit codes: 0 success, 2 something the user can mend (one line on stderr), 1 a failure.
What a command needs is imported where it is called, so that help and errors come at
once.
"""

import argparse
import errno
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from slm2_minimal import evaluating, evaluating_retrieval, quantising, writing
from slm2_minimal.config import RunConfig, UserError, parse_overrides, preset_names
from slm2_minimal.config.errors import shown
from slm2_minimal.config.overrides import integer, split_overrides
from slm2_minimal.config.paths import expand
from slm2_minimal.terminal import complain, log_to_terminal, show_any_text

WRITE_TEXT = ("generate", "chat")
TAKE_A_CONFIG = ("prepare", "train", "plan", "launch")
MOST_GPUS, MOST_TASKS = 1_000_000, 100_000
# What a path may be that cannot be used: the user can name another.
PATH_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
)  # fmt: skip
GPU = "whose memory has to do, a name as in slm2 plan (default: this machine's)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    show_any_text()
    log_to_terminal()

    try:
        overrides, words = split_overrides(sys.argv[1:] if arguments is None else arguments)
        if words[:2] == ["evaluate", "retrieval"]:  # one command of two words
            words[:2] = ["evaluate retrieval"]
        options, rest = _parser().parse_known_args(words)
        rest += overrides
        if rest and options.command not in TAKE_A_CONFIG:
            raise UserError(f"argument = {rest[0]!r}: unknown; see slm2 {options.command} --help")
        log_to_terminal(beside_text=options.command in WRITE_TEXT)
        options.call(options, rest)
    except UserError as error:
        return complain(str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as `| head` does, once it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.filename and error.errno in PATH_ERRORS:
            return complain(f"{error.filename!r}: {error.strerror}; give another path", 2)
        return complain(f"{type(error).__name__}: {error}", 1)
    return 0


# What can be typed


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(complain(f"{message}; see {self.prog} --help", 2))


class _Show(argparse.Action):
    """An option that shows a text, made only then, and ends the command."""

    def __init__(self, *, text: Callable[..., str], **options: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **options)
        self.text = text

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        print(self.text(parser, namespace), flush=True)
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="slm2", description="Stable LM 2 from scratch.")
    parser.add_argument(
        "--version", action=_Show, text=_version, help="the package's, torch's and Python's"
    )

    # the commands, in the order of the help
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_prepare,
        _add_train,
        _add_plan,
        _add_launch,
        _add_generate,
        _add_chat,
        _add_export,
    ):
        add(commands)
    evaluating.add_options(_command(commands, "evaluate", evaluating.evaluate, evaluating.SUMMARY))
    _add_evaluate_retrieval(commands)
    quantising.add_options(_command(commands, "quantise", quantising.quantise, quantising.SUMMARY))
    summary = "what this machine has: devices, formats, measured rates, installed extras"
    _command(commands, "doctor", _doctor, summary)
    return parser


def _command(commands: Any, name: str, call: Callable[..., None], summary: str) -> Any:
    """Make a command and return its `add_argument`. One that takes a configuration has
    all of its keys in its help.
    """
    keys = name in TAKE_A_CONFIG
    command = commands.add_parser(name, help=summary, allow_abbrev=False, add_help=not keys)
    command.set_defaults(call=call)
    add = command.add_argument
    if keys:
        presets = ", ".join(preset_names())
        add("config", metavar="CONFIG", help=f"a preset ({presets}) or a .toml file")
        add("-h", "--help", action=_Show, text=_help_with_keys, help="all options and all keys")
    return add


def _number(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """What an option takes: a number from `low` to `high`."""

    def convert(text: str) -> float:
        number = kind(text)
        if not low <= number <= high:
            message = f"{text} must lie between {low:,} and {high:,}"
            raise argparse.ArgumentTypeError(message)
        return number

    convert.__name__ = kind.__name__  # in "invalid integer value"
    return convert


def _help_with_keys(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The options, then every key with its value in the named configuration."""
    from slm2_minimal.config.keys import WIDTH, manual

    if options.config is None:
        config = RunConfig()
        values = f"the defaults; {parser.prog} CONFIG --help shows a configuration's"
    else:
        config = RunConfig.load(options.config)
        values = f"{options.config}'s; without CONFIG, --help shows the defaults"
    about = f"Any key can be laid over: --section.field VALUE. The values here are {values}."
    return f"{parser.format_help()}\n{textwrap.fill(about, WIDTH)}\n\n{manual(config)}"


def _version(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    from importlib.metadata import version

    python = sys.version.split()[0]
    return f"slm2 {version('slm2-minimal')} (torch {version('torch')}, Python {python})"


def _add_prepare(commands: Any) -> None:
    summary = "clean and tokenise the sources into shards, or go on where it was stopped"
    executors = (
        "own: processes on this machine (default); local and slurm: the same steps on datatrove's"
        " executors, here or on a cluster"
    )
    tasks = "local, slurm: how many tasks share the files; a task can be run again alone"
    dry_run = "slurm: write the scripts, and submit nothing"
    add = _command(commands, "prepare", _prepare, summary)
    add("--executor", choices=("own", "local", "slurm"), default="own", help=executors)
    add("--tasks", type=_number(integer, 1, MOST_TASKS), metavar="N", help=tasks)
    _add_slurm_options(add)
    add("--dry-run", action="store_true", default=None, help=dry_run)


def _add_train(commands: Any) -> None:
    summary = "train a model, or go on where a run stopped"
    check = "say what would be trained, or what is wrong, and start nothing"
    gpus = "with --check: of a run on N (default: this one's)"
    add = _command(commands, "train", _train, summary)
    add("--check", action="store_true", help=check)
    add("--gpus", type=_number(integer, 1, MOST_GPUS), metavar="N", help=gpus)
    add("--gpu", metavar="NAME", help=f"with --check: {GPU}")


def _add_plan(commands: Any) -> None:
    summary = "what a run would need: memory, step time, GPU-hours, cost, energy; starts nothing"
    names = "a100-40gb (default), a100-80gb, h100-80gb or h200-141gb"
    strategy = "single, ddp, zero1, fsdp or hybrid (default: the configuration's)"
    checkpointing = "of activations: none, selective or full (default: the configuration's)"
    tflops = "what a GPU achieves, in TFLOP/s (A100 default: 170, the report's)"
    usd_per_hour = "of one GPU (default: 3.5 for a100-40gb, the report's)"
    add = _command(commands, "plan", _plan, summary)
    gpus = "in all; above 8, whole nodes of 8"
    rate = _number(float, 1e-6, 1e6)
    add("--gpus", type=_number(integer, 1, MOST_GPUS), required=True, metavar="N", help=gpus)
    add("--gpu", default="a100-40gb", metavar="NAME", help=names)
    add("--strategy", metavar="NAME", help=strategy)
    add("--checkpointing", metavar="NAME", help=checkpointing)
    add("--tflops", type=rate, metavar="X", help=tflops)
    add("--mfu", type=rate, metavar="X", help="the same as a share of its peak, for example 0.4")
    add("--usd-per-hour", type=_number(float, 0, 1e6), metavar="X", help=usd_per_hour)


def _add_launch(commands: Any) -> None:
    summary = "check a run, write its scripts, and start it on this machine's GPUs or on SLURM's"
    gpus = "in all; above a node's, whole nodes, which SLURM gives"
    prologue = "lines of bash that every node runs first: modules, a container, variables"
    out = "where the scripts are written (default: launch/ in train.output_dir)"
    dry_run = "check and write the scripts, and start nothing"
    add = _command(commands, "launch", _launch, summary)
    add("--gpus", type=_number(integer, 1, MOST_GPUS), required=True, metavar="N", help=gpus)
    per_node = _number(integer, 1, MOST_GPUS)
    add("--gpus-per-node", type=per_node, default=8, metavar="N", help="of a node (default 8)")
    add("--gpu", metavar="NAME", help=GPU)
    add("--out", metavar="DIR", help=out)
    add("--prologue", metavar="FILE", help=prologue)
    add("--dry-run", action="store_true", help=dry_run)
    _add_slurm_options(add)


def _add_slurm_options(add: Callable[..., Any]) -> None:
    partition = "slurm: where it runs (default: the cluster's)"
    limit = "slurm: the limit of a job or task (default 24:00:00)"
    sbatch = "slurm: an option of sbatch, as qos=high; mem= leaves out ours; may be repeated"
    add("--partition", metavar="NAME", help=partition)
    add("--time", metavar="HH:MM:SS", help=limit)
    add("--sbatch", metavar="KEY=VALUE", action="append", help=sbatch)


def _add_generate(commands: Any) -> None:
    summary = "continue prompts with a trained model"
    writing.add_generate_options(_command(commands, "generate", writing.generate, summary))


def _add_chat(commands: Any) -> None:
    summary = "talk with a model in the terminal"
    writing.add_chat_options(_command(commands, "chat", writing.chat, summary))


def _add_evaluate_retrieval(commands: Any) -> None:
    call, summary = evaluating_retrieval.evaluate_retrieval, evaluating_retrieval.SUMMARY
    evaluating_retrieval.add_options(_command(commands, "evaluate retrieval", call, summary))


def _add_export(commands: Any) -> None:
    summary = "write a model for transformers and others (hf), or for llama.cpp (gguf)"
    types = "of the matrices: f32 (default), f16, bf16; of gguf's also q8_0, q4_0, q4_1"
    tokenizer = "gguf: as in slm2 generate, where the model names none"
    add = _command(commands, "export", _export, summary)
    add("model", help=writing.MODEL)
    add("out", help="what to write: a folder, new or empty; of gguf a new file")
    add("--format", choices=("hf", "gguf"), default="hf", help="of the files (default hf)")
    add("--type", default="f32", help=types)
    add("--tokenizer", help=tokenizer)


# What is called


def _prepare(options: argparse.Namespace, rest: list[str]) -> None:
    for name in ("tasks", "partition", "time", "sbatch", "dry_run"):
        executors = ("local", "slurm") if name == "tasks" else ("slurm",)
        if getattr(options, name) is not None and options.executor not in executors:
            raise UserError(
                f"--{name.replace('_', '-')}: means nothing to --executor {options.executor}; leave"
                " it out, or use slurm"
            )
    config = RunConfig.load(options.config, parse_overrides(rest))

    if options.executor == "own":
        from slm2_minimal.prepare.run import prepare

        prepare(config)
    elif options.executor == "local":
        from slm2_minimal.prepare.cluster import run_local

        run_local(config, options.tasks)
    else:
        from slm2_minimal.prepare.cluster import run_slurm

        chosen, dry_run = _slurm_options(options), bool(options.dry_run)
        run_slurm(config, options.tasks, chosen, dry_run=dry_run)


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    config = RunConfig.load(options.config, parse_overrides(rest))
    if options.check:
        from slm2_minimal.launch.check import check

        launched = options.gpus is not None or "WORLD_SIZE" in os.environ
        here = os.environ.get("WORLD_SIZE", "1")
        if not here.isdecimal():
            raise UserError(f"WORLD_SIZE = {here!r}: must be a whole number; unset it")
        gpus = int(here) if options.gpus is None else options.gpus
        print("\n".join(check(config, gpus, options.gpu, launched=launched)))
        return
    for name in ("gpus", "gpu"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name}: goes with --check; slm2 launch {options.config} starts several"
                " processes"
            )

    from slm2_minimal.distributed.world import World
    from slm2_minimal.train.rules import warn_of_an_early_end
    from slm2_minimal.train.trainer import Trainer

    with World.joined(config.train.device) as world:
        trainer = Trainer.from_config(config, world)
        warn_of_an_early_end(config)
        trainer.run()


def _plan(options: argparse.Namespace, rest: list[str]) -> None:
    config = RunConfig.load(options.config, parse_overrides(rest))

    from slm2_minimal.launch.planner import plan, table

    chosen = plan(
        config,
        options.gpus,
        options.gpu,
        options.strategy,
        options.checkpointing,
        tflops=options.tflops,
        mfu=options.mfu,
        usd_per_hour=options.usd_per_hour,
    )
    print(table(config, chosen))


def _launch(options: argparse.Namespace, rest: list[str]) -> None:
    config = RunConfig.load(options.config, parse_overrides(rest))

    from slm2_minimal.launch.launch import launch

    launch(
        config,
        [options.config, *rest],
        options.gpus,
        options.gpu,
        None if options.out is None else Path(expand(options.out, "out")),
        _slurm_options(options),
        gpus_per_node=options.gpus_per_node,
        prologue=options.prologue,
        dry_run=options.dry_run,
    )


def _export(options: argparse.Namespace, rest: list[str]) -> None:
    from slm2_minimal.export.formats import export

    source, out = expand(options.model, "model"), expand(options.out, "out")
    print(export(source, out, options.format, options.type, options.tokenizer))


def _doctor(options: argparse.Namespace, rest: list[str]) -> None:
    from slm2_minimal.launch.doctor import report

    for line in report():
        print(line, flush=True)  # each when it is measured


def _slurm_options(options: argparse.Namespace) -> dict[str, str | None]:
    """What was given of them, by sbatch's long names; None: leave ours out."""
    named = {"partition": options.partition, "time": options.time}
    chosen = {key: value for key, value in named.items() if value is not None}
    for word in options.sbatch or ():
        key, equals, value = word.partition("=")
        chosen[key] = None if equals and not value else value
    for key, value in chosen.items():
        if not re.fullmatch("[a-z][a-z-]*", key) or not (value or "").isprintable():
            raise UserError(
                f"--sbatch {key}={shown(value)}: would be another line of the script; give"
                " KEY=VALUE without line breaks"
            )
    return chosen
