"""The command line `slm2`: parses and calls, nothing else.

Exit codes: 0 success, 2 something the user can mend (one line on stderr), 1 a failure.
"""

import argparse
import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from slm2_minimal.config import RunConfig, UserError, parse_overrides, preset_names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser, words = _parser(), list(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(words)
    try:
        if options.command not in ("train", "prepare", "plan", "launch") and rest:
            raise UserError(f"argument = {rest[0]!r}: unknown; see slm2 {options.command} --help")
        options.call(options, rest)
    except UserError as error:
        print(f"slm2: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as `| head` does, once it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RuntimeError, OSError) as error:
        print(f"slm2: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"slm2: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="slm2", description="Stable LM 2 from scratch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    epilog = (
        "Any key of the configuration can be laid over: --section.field VALUE. With the preset"
        " 'tiny' they are:\n  "
    )
    epilog += "\n  ".join(_all_keys(RunConfig.preset("tiny").to_dict()))
    for name, call, add_options, summary in (
        (
            "prepare", _prepare, _add_prepare_options,
            "clean and tokenise the sources of a preset or a TOML file into shards, or go on where it was stopped",
        ),
        ("train", _train, _add_train_options, "train a model from a preset or a TOML file, or go on where a run stopped"),
        ("plan", _plan, _add_plan_options, "what a run would need: memory, step time, GPU-hours, cost, energy; starts nothing"),
        ("launch", _launch, _add_launch_options, "check a run, write its scripts, and start it on the GPUs of this machine or on SLURM's"),
    ):  # fmt: skip
        command = commands.add_parser(
            name,
            help=summary,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument(
            "config",
            metavar="CONFIG",
            help=f"a preset ({', '.join(preset_names())}) or a .toml file",
        )
        command.set_defaults(call=call)
        add_options(command)
    _add_model_commands(commands)

    doctor = commands.add_parser(
        "doctor",
        help="what this machine has: devices, formats, measured rates, installed extras",
        allow_abbrev=False,
    )
    doctor.set_defaults(call=_doctor)
    return parser


def _add_model_commands(commands: Any) -> None:
    """What is done with a trained model."""
    kinds = (
        "a run's folder (its best checkpoint), a checkpoint, a folder in Hugging Face's format, or"
        " a Hub id"
    )
    generate = commands.add_parser(
        "generate", help="continue a prompt with a trained model", allow_abbrev=False
    )
    generate.add_argument("model", help=kinds)
    generate.add_argument("--prompt", default="", help="the text to continue; none: free text")
    generate.add_argument(
        "--tokenizer", help="arcade100k, tiny, or a file; left out: the run's own, else arcade100k"
    )
    generate.add_argument("--max-new-tokens", type=int, default=128)
    generate.add_argument("--temperature", type=float, default=0.7, help="0: greedy (default 0.7)")
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float, default=0.95)
    generate.add_argument("--seed", type=int, help="the same seed gives the same text")
    generate.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    generate.set_defaults(call=_generate)

    export = commands.add_parser(
        "export",
        help="write a model in Hugging Face's format, for transformers and others",
        allow_abbrev=False,
    )
    export.add_argument("model", help=kinds)
    export.add_argument("out", help="the folder to write: new, or empty")
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights (default float32: as trained)",
    )
    export.set_defaults(call=_export)


def _add_prepare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--executor", choices=("own", "local", "slurm"), default="own",
        help="own: processes on this machine (default); local and slurm: the same steps on datatrove's executors, here or on a cluster",
    )  # fmt: skip
    command.add_argument(
        "--tasks",
        type=int,
        metavar="N",
        help="local, slurm: how many tasks share the files; a task can be run again alone",
    )
    _add_slurm_options(command)
    command.add_argument(
        "--dry-run",
        action="store_true",
        default=None,
        help="slurm: write the scripts, and submit nothing",
    )


def _add_slurm_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--partition", metavar="NAME", help="slurm: where it runs (default: the cluster's)"
    )
    command.add_argument(
        "--time", metavar="HH:MM:SS", help="slurm: the limit of a job or task (default 24:00:00)"
    )
    command.add_argument(
        "--sbatch",
        metavar="KEY=VALUE",
        action="append",
        help="slurm: one more option of sbatch, for example qos=high; may be repeated",
    )


def _slurm_options(options: argparse.Namespace) -> dict[str, str]:
    """What was given of them, by sbatch's long names."""
    chosen = {"partition": options.partition, "time": options.time} | dict(
        word.partition("=")[::2] for word in options.sbatch or ()
    )
    return {key: value for key, value in chosen.items() if value is not None}


def _add_train_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--check",
        action="store_true",
        help="say what would be trained, or what is wrong, and start nothing",
    )
    command.add_argument(
        "--gpus", type=int, metavar="N", help="with --check: of a run on N (default: this one's)"
    )
    command.add_argument(
        "--gpu",
        metavar="NAME",
        help=(
            "with --check: whose memory has to do, a name as in slm2 plan (default: this machine's)"
        ),
    )


def _add_launch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--gpus",
        type=int,
        required=True,
        metavar="N",
        help="in all; above 8, whole nodes of 8, which SLURM gives",
    )
    command.add_argument(
        "--gpu",
        metavar="NAME",
        help="whose memory has to do, a name as in slm2 plan (default: this machine's)",
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        help="where the scripts are written (default: launch/ in train.output_dir)",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="check and write the scripts, and start nothing"
    )
    _add_slurm_options(command)


def _add_plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--gpus", type=int, required=True, metavar="N", help="in all; above 8, whole nodes of 8"
    )
    command.add_argument(
        "--gpu",
        default="a100-40gb",
        metavar="NAME",
        help="a100-40gb (default), a100-80gb, h100-80gb or h200-141gb",
    )
    command.add_argument(
        "--strategy",
        metavar="NAME",
        help="single, ddp, zero1, fsdp or hybrid (default: the configuration's)",
    )
    command.add_argument(
        "--checkpointing",
        metavar="NAME",
        help="of activations: none, selective or full (default: the configuration's)",
    )
    command.add_argument(
        "--tflops",
        type=float,
        metavar="X",
        help="what a GPU achieves, in TFLOP/s (A100 default: 170, the report's)",
    )
    command.add_argument(
        "--mfu", type=float, metavar="X", help="the same as a share of its peak, for example 0.4"
    )
    command.add_argument(
        "--usd-per-hour",
        type=float,
        metavar="X",
        help="of one GPU (default: 3.5 for a100-40gb, the report's)",
    )


def _all_keys(table: Mapping[str, Any], prefix: str = "--") -> Iterator[str]:
    """Every key with its value, as it would be typed in a shell."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _all_keys(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key} " + ("(not set)" if value is None else shlex.quote(text))


def _prepare(options: argparse.Namespace, rest: list[str]) -> None:
    slurm_only = ("partition", "time", "sbatch", "dry_run")
    useless = {"slurm": (), "local": slurm_only, "own": ("tasks", *slurm_only)}
    for name in useless[options.executor]:
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')}: means nothing to --executor {options.executor}; leave"
                " it out, or use slurm"
            )
    run = RunConfig.load(options.config, parse_overrides(rest))
    _log_to_stdout()
    if options.executor == "own":
        from slm2_minimal.prepare.run import prepare

        prepare(run)
        return
    from slm2_minimal.prepare.cluster import run_local, run_slurm

    if options.executor == "local":
        run_local(run, options.tasks)
    else:
        run_slurm(run, options.tasks, _slurm_options(options), dry_run=bool(options.dry_run))


class _Stdout(logging.Handler):
    """Lines for the terminal. The errors of `print` pass, unlike in logging's own."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def _log_to_stdout() -> None:
    """Show what the package logs at level INFO, in a process that is a command."""
    logger = logging.getLogger("slm2_minimal")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Stdout) for handler in logger.handlers):
        logger.addHandler(_Stdout())


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    from slm2_minimal.distributed.world import World
    from slm2_minimal.launch.check import check
    from slm2_minimal.train.trainer import Trainer

    config = RunConfig.load(options.config, parse_overrides(rest))
    if options.check:
        gpus = int(os.environ.get("WORLD_SIZE", 1)) if options.gpus is None else options.gpus
        print("\n".join(check(config, gpus, options.gpu)))
        return
    if options.gpus is not None or options.gpu is not None:
        raise UserError(
            f"--gpu{'s' * (options.gpus is not None)}: goes with --check; slm2 launch"
            f" {options.config} starts several processes"
        )
    with World.joined(config.train.device) as world:
        Trainer(config, world).run()


def _launch(options: argparse.Namespace, rest: list[str]) -> None:
    from slm2_minimal.launch.launch import launch

    config = RunConfig.load(options.config, parse_overrides(rest))
    folder = None if options.out is None else Path(options.out)
    words, say = [options.config, *rest], functools.partial(print, flush=True)
    launch(
        config,
        words,
        options.gpus,
        options.gpu,
        folder,
        _slurm_options(options),
        dry_run=options.dry_run,
        say=say,
    )


def _plan(options: argparse.Namespace, rest: list[str]) -> None:
    from slm2_minimal.launch.planner import plan, table

    config = RunConfig.load(options.config, parse_overrides(rest))
    given = {"tflops": options.tflops, "mfu": options.mfu, "usd_per_hour": options.usd_per_hour}
    need = plan(config, options.gpus, options.gpu, options.strategy, options.checkpointing, **given)
    print(table(config, need))


def _generate(options: argparse.Namespace, rest: list[str]) -> None:
    from slm2_minimal.distributed.checkpoint import load_model
    from slm2_minimal.distributed.device import pick_device
    from slm2_minimal.inference.generate import stream_text
    from slm2_minimal.text.tokenizer import load_tokenizer

    # Before the model, which takes longer.
    given = load_tokenizer(options.tokenizer) if options.tokenizer else None
    model, tokenizer_name = load_model(options.model)
    tokenizer = given or load_tokenizer(tokenizer_name or "arcade100k")
    model = model.to(pick_device(options.device))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"tokenizer = {tokenizer.name!r}: has {tokenizer.vocab_size} ids, the model"
            f" {model.config.vocab_size}; name the one it was trained with"
        )
    print(options.prompt, end="", flush=True)
    sampling = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
    }
    for piece in stream_text(model, tokenizer, options.prompt, options.max_new_tokens, **sampling):
        print(piece, end="", flush=True)
    print()


def _export(options: argparse.Namespace, rest: list[str]) -> None:
    import torch

    from slm2_minimal.distributed.checkpoint import load_model

    out = Path(options.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"out = {options.out!r}: is there already; name a new folder, or an empty one"
        )
    model, tokenizer_name = load_model(options.model)
    model.to(getattr(torch, options.dtype)).save_pretrained(out)
    trained = "" if tokenizer_name is None else f"; its tokenizer is {tokenizer_name}"
    print(f"{out}: {model.config.num_parameters():,} parameters in {options.dtype}{trained}")


def _doctor(options: argparse.Namespace, rest: list[str]) -> None:
    from slm2_minimal.launch.doctor import report

    for line in report():
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
