"""`slm2 quantise`: what it takes, and what it does."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.config.paths import expand

if TYPE_CHECKING:
    from slm2_minimal.evaluate.quantised import Report
    from slm2_minimal.model.quantised import Quantisation

SUMMARY = "write a model with weights of 8 or 4 bits, and say what they cost"
REPORT = "quantisation.json"


def add_options(add: Callable[..., Any]) -> None:
    model = "a run's folder, a checkpoint, a folder in Hugging Face's format, or a Hub id"
    group = "weights of a row that share a scale (default: 32 of 4 bits, the whole row of 8)"
    method = "round to nearest (default), or make up for the errors on a text"
    tokenizer = "arcade100k, tiny, a file or a folder; left out: the model's own"
    add("model", help=model)
    add("out", help="the folder to write: new, or empty")
    add("--bits", type=int, choices=(8, 4), default=8, help="of a weight (default 8)")
    add("--group", type=int, metavar="N", help=group)
    add("--method", choices=("rtn", "gptq"), default="rtn", help=method)
    add("--calibrate", metavar="FILE", help="for gptq: text like what the model will read")
    add("--asymmetric", action="store_true", help="an offset for each group beside its scale")
    add("--tokenizer", help=tokenizer)


def quantise(options: argparse.Namespace, rest: list[str]) -> None:
    """Quantise, save, and print the table of what it cost."""
    from slm2_minimal.model.quantised import Quantisation

    source, out = expand(options.model, "model"), expand(options.out, "out")
    tokenizer, calibrate = (
        None if text is None else expand(text, name)
        for name, text in (("tokenizer", options.tokenizer), ("calibrate", options.calibrate))
    )
    group = 32 if options.group is None and options.bits == 4 else options.group
    settings = Quantisation(options.bits, group, not options.asymmetric, options.method)

    report = quantise_model(source, out, settings, calibrate, tokenizer)
    print("\n".join(report.lines()))
    size = sum(layer.bytes for layer in report.layers)
    print(f"{out}: {size / 1e6:,.2f} MB of integers, all else in bf16; {REPORT} has every layer")


def quantise_model(
    source: str,
    out: str,
    settings: "Quantisation",
    calibrate: str | None = None,
    tokenizer: str | None = None,
) -> "Report":
    """Quantise the model `source` into the new folder `out`, with its tokenizer and
    REPORT. What is not quantised is rounded to bf16.

    `calibrate` is what `load_corpus` reads, for gptq. Where anything fails, `out` is as
    it was.

    Raises:
        ConfigError, DataError, CheckpointError: an option, a text, a tokenizer or a
        model that cannot be; `out` is there, or cannot be written.
    """
    from slm2_minimal.files import whole_folder
    from slm2_minimal.text.corpus import load_corpus
    from slm2_minimal.text.tokenizer import load_tokenizer

    # what may be refused, before the model, which takes long
    if settings.method == "gptq" and calibrate is None:
        raise ConfigError("calibrate = None: gptq needs a text; give --calibrate FILE")
    if settings.method == "rtn" and calibrate is not None:
        raise ConfigError(
            f"calibrate = {calibrate!r}: rtn looks at no text; leave it out, or give --method gptq"
        )
    if tokenizer is not None:
        load_tokenizer(tokenizer)
    calibrated = [] if calibrate is None else [each.text for each in load_corpus(calibrate)]

    try:
        with whole_folder(Path(out)) as folder:
            return _quantise_into(folder, source, settings, calibrated, tokenizer)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"out = {out!r}: {reason}; name a new folder, or an empty one") from None


def _quantise_into(
    folder: Path,
    source: str,
    settings: "Quantisation",
    calibrated: list[str],
    tokenizer_name: str | None,
) -> "Report":
    """`quantise_model`, into a folder that nobody sees yet."""
    from slm2_minimal.distributed.pretrained import check_not_quantised, check_tokenizer, load_model
    from slm2_minimal.evaluate import quantised as evaluate
    from slm2_minimal.export.tokenizer_files import chat_template_of, write_tokenizer
    from slm2_minimal.files import write_json
    from slm2_minimal.inference.quantise import quantise
    from slm2_minimal.model.precision import Fp32Activations
    from slm2_minimal.text.tokenizer import load_tokenizer

    # the model and its tokenizer
    original, own = load_model(source, dtype=None)
    check_not_quantised(source, original)
    name = tokenizer_name or own or "arcade100k"
    tokenizer = load_tokenizer(name)
    check_tokenizer(source, original, tokenizer)

    # fewer bits, and what they cost, whatever the format of the activations
    context = original.config.max_position_embeddings
    batch = evaluate.calibration(calibrated, tokenizer, context) if calibrated else None
    texts = evaluate.held_out(calibrated)
    with Fp32Activations():
        model = quantise(
            original,
            settings.bits,
            settings.group,
            symmetric=settings.symmetric,
            method=settings.method,
            calibration=batch,
        ).bfloat16()
        report = evaluate.compare(original, model, texts, tokenizer)

    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer, context, chat_template_of(source, name))
    write_json(folder / REPORT, report.to_json())
    return report
