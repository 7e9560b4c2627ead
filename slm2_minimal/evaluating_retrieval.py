"""`slm2 evaluate retrieval`: what it takes, and what it writes."""

import argparse
import datetime
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm2_minimal.config import ConfigError, DataError, MissingExtraError
from slm2_minimal.config.overrides import integer
from slm2_minimal.config.paths import expand

if TYPE_CHECKING:
    from slm2_minimal.evaluate.retrieval import Ask, Cell, Settings
    from slm2_minimal.text.tokenizer import Tokenizer

SUMMARY = "whether a model finds a number again in a long text, by depth and length"
RESULTS, PICTURE = "retrieval.json", "retrieval.png"


def add_options(add: Callable[..., Any]) -> None:
    model = "as in slm2 generate; none with --endpoint"
    kinds = "passkey, needles, key-value (default all), separated by commas"
    lengths = "in tokens, of text and answer (default: a quarter, half and all of the context)"
    depths = "where the number stands: 0 the beginning, 1 the end (default 0,0.25,0.5,0.75,1)"
    haystack = "text around the numbers: the corpus's, or a few sentences again and again"
    endpoint = "a server in OpenAI's form to ask instead, as http://localhost:8000/v1"
    tokenizer = "what counts tokens: arcade100k, tiny, a file or a folder (default: the model's)"
    add("model", nargs="?", help=model)
    add("--kinds", type=_words, metavar="NAMES", help=kinds)
    add("--lengths", type=_list_of(integer), metavar="N,N", help=lengths)
    add("--depths", type=_list_of(float), metavar="X,X", help=depths)
    add("--languages", type=_words, metavar="NAMES", help="en,de,es,fr,it,nl,pt (default all)")
    add("--haystack", choices=("corpus", "filler"), default="corpus", help=haystack)
    add("--samples", type=integer, default=4, metavar="N", help="of each cell (default 4)")
    add("--seed", type=integer, default=0, metavar="N", help="another one gives other texts")
    add("--endpoint", metavar="URL", help=endpoint)
    add("--model-name", metavar="NAME", help="the model's name at the endpoint")
    add("--tokenizer", help=tokenizer)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--out", metavar="DIR", default="retrieval", help="of the results (default retrieval)")


def evaluate_retrieval(options: argparse.Namespace, rest: list[str]) -> None:
    """Ask, write RESULTS after each group of cells, print maps, and draw PICTURE.

    Raises:
        ConfigError, DataError, CheckpointError: an option, a model, a tokenizer or a
        server that cannot be, or a server that fails; what was found before stays.
    """
    from slm2_minimal.evaluate.retrieval import measure
    from slm2_minimal.evaluate.retrieval_maps import draw_maps, share, text_maps
    from slm2_minimal.files import write_json

    # what may be refused before the model is loaded
    out = Path(expand(options.out, "out"))
    if (out / RESULTS).exists():
        raise DataError(f"out = {options.out!r}: has a {RESULTS} already; name another folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "book", "the picture")
    settings = _settings(options)
    ask, tokenizer, settings = (_of_endpoint if options.endpoint else _of_model)(options, settings)

    results = {
        "model": options.model or options.model_name,
        "endpoint": options.endpoint,
        "date": datetime.date.today().isoformat(),
        "tokenizer": tokenizer.name,
        "settings": asdict(settings),
    }
    out.mkdir(parents=True, exist_ok=True)
    cells: list[Cell] = []
    for name, found in measure(ask, tokenizer, settings):
        cells += found
        write_json(out / RESULTS, results | {"cells": [asdict(cell) for cell in cells]})
        print(f"{name}: {share(found):.0%} found", flush=True)

    print("\n".join(text_maps(cells)))
    draw_maps(cells).savefig(out / PICTURE)
    print(f"{out / RESULTS} has every answer, {out / PICTURE} a map of each language")


def _settings(options: argparse.Namespace) -> "Settings":
    """Without lengths, those of the model are still to be taken."""
    from slm2_minimal.evaluate.retrieval import Settings

    given = {
        name: value
        for name in ("kinds", "languages", "lengths", "depths")
        if (value := getattr(options, name)) is not None
    }
    return Settings(samples=options.samples, haystack=options.haystack, seed=options.seed, **given)


def _of_endpoint(
    options: argparse.Namespace, settings: "Settings"
) -> "tuple[Ask, Tokenizer, Settings]":
    from slm2_minimal.evaluate.endpoint import Endpoint
    from slm2_minimal.text.tokenizer import load_tokenizer

    if options.model is not None:
        raise ConfigError(f"model = {options.model!r}: goes not with --endpoint; give one of them")
    for name in ("model_name", "lengths"):
        if getattr(options, name) is None:
            raise ConfigError(f"--{name.replace('_', '-')}: is needed with --endpoint; name it")
    endpoint = Endpoint(options.endpoint, options.model_name)
    tokenizer = load_tokenizer(expand(options.tokenizer or "arcade100k", "tokenizer"))
    return endpoint.outcomes, tokenizer, settings


def _of_model(
    options: argparse.Namespace, settings: "Settings"
) -> "tuple[Ask, Tokenizer, Settings]":
    from slm2_minimal.distributed.pretrained import load_with_tokenizer
    from slm2_minimal.evaluate.retrieval import score_probes

    if options.model is None:
        raise ConfigError("model: missing; name one, or a server by --endpoint")
    if options.model_name is not None:
        raise ConfigError(f"--model-name {options.model_name}: goes with --endpoint; leave it out")
    source = expand(options.model, "model")
    model, tokenizer = load_with_tokenizer(source, options.tokenizer, options.device)
    context = model.config.max_position_embeddings
    if options.lengths is None:
        lengths = [context // 4, context // 2, context]
        settings = replace(settings, lengths=lengths)
    if max(settings.lengths) > context:
        raise ConfigError(
            f"lengths = {max(settings.lengths)}: longer than the model's context; give at most"
            f" {context}"
        )
    return partial(score_probes, model, tokenizer), tokenizer, settings


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def convert(text: str) -> list[Any]:
        return [kind(word) for word in text.split(",")]

    convert.__name__ = f"list of {kind.__name__}s"  # in "invalid list of integers value"
    return convert
