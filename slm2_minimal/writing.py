"""`slm2 generate` and `slm2 chat`: what they take, and what they call."""

import argparse
import re
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm2_minimal.config import DataError, UserError
from slm2_minimal.config.overrides import integer
from slm2_minimal.config.paths import expand

if TYPE_CHECKING:
    from slm2_minimal.inference.sampling import Sampling
    from slm2_minimal.model.transformer import StableLM2
    from slm2_minimal.text.chat import Format
    from slm2_minimal.text.tokenizer import Tokenizer

MODEL = (
    "a run's folder (its best checkpoint), a checkpoint, a folder in Hugging Face's format, or a"
    " Hub id"
)
ROWS = 16  # texts that are written at once; each is what it would be alone
TOKENS = 128  # that are written of a text, where the context has room
ANSWER = 512  # tokens of an answer, where the context has room


# What can be typed


def add_generate_options(add: Callable[..., Any]) -> None:
    file = "prompts, one a line; - is standard input; empty lines are passed over"
    stop = "ends the text before it, beside the end of text; may be repeated"
    lookup = "take drafts from the text so far: faster where it repeats itself, for greedy text"
    _add_model(add)
    prompt = "the text to continue; may be repeated; none at all: free text"
    add("--prompt", action="append", metavar="TEXT", help=prompt)
    add("--file", metavar="FILE", help=file)
    add("--samples", type=integer, default=1, metavar="N", help="texts of each prompt (default 1)")
    tokens = f"at most (default {TOKENS}, or what the context has room for)"
    add("--max-new-tokens", type=integer, metavar="N", help=tokens)
    _add_sampling(add)
    add("--stop", action="append", default=[], metavar="TEXT", help=stop)
    add("--lookup", action="store_true", help=lookup)


def add_chat_options(add: Callable[..., Any]) -> None:
    formats = (
        "zephyr, chatml or plain (default: that of the folder's chat template, or what a run was"
        " tuned in; plain for one that was not)"
    )
    tokens = f"of an answer, at most (default {ANSWER}, or half the context)"
    _add_model(add)
    add("--format", choices=("zephyr", "chatml", "plain"), help=formats)
    add("--system", metavar="TEXT", help="a message that stands before the conversation")
    add("--max-new-tokens", type=integer, metavar="N", help=tokens)
    _add_sampling(add)


def _add_model(add: Callable[..., Any]) -> None:
    tokenizer = "arcade100k, tiny, or a file; left out: the model's own"
    add("model", help=MODEL)
    add("--tokenizer", help=tokenizer)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add_sampling(add: Callable[..., Any]) -> None:
    top_k = "draw among so many of the likeliest (default: all)"
    top_p = "draw among the likeliest with this share (default 0.95)"
    min_p = "draw among those with this share of the likeliest's probability (default: all)"
    penalty = "above 1, what the text has becomes less likely (default 1)"
    add("--temperature", type=float, default=0.7, metavar="X", help="0 is greedy (default 0.7)")
    add("--top-k", type=integer, metavar="N", help=top_k)
    add("--top-p", type=float, default=0.95, metavar="X", help=top_p)
    add("--min-p", type=float, metavar="X", help=min_p)
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help=penalty)
    add("--seed", type=integer, metavar="N", help="the same seed gives the same text")


# What is called


def generate(options: argparse.Namespace, rest: list[str]) -> None:
    """Print the continuation of each prompt: of one alone as it is written, of several
    each under a line that says which it is.
    """
    from slm2_minimal.inference.generate import check_room
    from slm2_minimal.inference.text import (
        check_lookup,
        check_stop_strings,
        prompt_ids,
        stream_text,
        write_texts,
    )

    # what may be refused before the model is loaded
    sampling = _sampling(options)
    prompts = _prompts(options)
    check_stop_strings(options.stop)
    samples = options.samples
    if samples < 1:
        raise UserError(f"samples = {samples}: must be at least 1; give a number of texts")
    alone = len(prompts) == samples == 1
    if options.lookup:
        check_lookup(sampling)
        if not alone:
            raise UserError("--lookup: writes one text; give one prompt, and no --samples")
    model, tokenizer = _load(options)

    # all prompts are checked before the first is written
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    room = model.config.max_position_embeddings
    tokens = options.max_new_tokens
    if tokens is None:
        tokens = min(TOKENS, max(1, room - max(map(len, ids))))
    check_room(ids, tokens, room)

    if alone:
        pieces = stream_text(
            model, tokenizer, prompts[0], tokens, sampling,
            stop_strings=options.stop, lookup=options.lookup,
        )  # fmt: skip
        print(prompts[0], end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return

    together = max(1, ROWS // samples)
    for begin in range(0, len(prompts), together):
        some = prompts[begin : begin + together]
        written = write_texts(
            model, tokenizer, some, tokens, sampling, samples=samples, stop_strings=options.stop
        )
        for number, (prompt, texts) in enumerate(zip(some, written, strict=True), begin + 1):
            for sample, text in enumerate(texts, 1):
                print(f"--- prompt {number}, sample {sample}")
                print(prompt + text, flush=True)


def chat(options: argparse.Namespace, rest: list[str]) -> None:
    """Talk with the model in the terminal."""
    from slm2_minimal.inference.chat import Chat, talk

    sampling = _sampling(options)
    format = options.format or _format(expand(options.model, "model"))
    model, tokenizer = _load(options)
    if format is None:
        format = "plain"
        print("(plain lines of User: and Assistant:, since this run was tuned for no format)")
    tokens = options.max_new_tokens
    if tokens is None:
        tokens = min(ANSWER, model.config.max_position_embeddings // 2)
    talk(Chat(model, tokenizer, format, sampling, tokens, options.system))


def _sampling(options: argparse.Namespace) -> "Sampling":
    from slm2_minimal.inference.sampling import Sampling

    return Sampling(
        options.temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
        options.seed,
    )


def _prompts(options: argparse.Namespace) -> list[str]:
    """What was given by --prompt, then the lines of --file; else free text."""
    prompts = list(options.prompt or ())
    if options.file is not None:
        name = options.file
        try:
            stdin = name == "-"
            content = sys.stdin.buffer.read() if stdin else Path(expand(name, "file")).read_bytes()
            lines = re.split(r"\r\n|\r|\n", content.decode("utf-8-sig"))
        except OSError as error:
            raise DataError(
                f"file = {name!r}: {error.strerror}; give one that can be read"
            ) from None
        except UnicodeDecodeError:
            raise DataError(f"file = {name!r}: is not UTF-8 text; save it as that") from None

        # an empty line is no prompt
        lines = [line for line in lines if line.strip()]
        if not lines:
            raise DataError(f"file = {name!r}: holds no prompt; write one a line")
        prompts += lines
    return prompts or [""]


def _load(options: argparse.Namespace) -> tuple["StableLM2", "Tokenizer"]:
    """The model and its tokenizer, which fit each other."""
    from slm2_minimal.distributed.pretrained import load_with_tokenizer
    from slm2_minimal.inference.single_rows import speed_up
    from slm2_minimal.model.quantised import quantised_layers

    source = expand(options.model, "model")
    model, tokenizer = load_with_tokenizer(source, options.tokenizer, options.device, dtype=None)
    speed_up(model)

    # how integer weights are multiplied is said before any text
    table = model.model.embed_tokens.weight
    for _, layer in islice(quantised_layers(model), 1):
        layer.choose(table.new_ones(1, layer.in_features))
    return model, tokenizer


def _format(source: str) -> "Format | None":
    """The chat format that travels with a model's folder, or that a run was tuned in;
    None for a run that was not.
    """
    from slm2_minimal.distributed.pretrained import chat_format
    from slm2_minimal.model import hub
    from slm2_minimal.text.chat import format_of

    if format := chat_format(source):
        return format
    folder = hub.resolve(source)
    format = format_of(folder)
    if format is None and (folder / hub.CONFIG).exists():
        raise UserError(
            f"format: {source!r} has no chat template; say by --format what the model was tuned"
            " for, plain if for nothing"
        )
    return format
