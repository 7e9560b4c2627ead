"""The released weights in this package, held against transformers.

    python benchmarks/check_released.py   # network, 7 GB to fetch, 10 GB of memory
    python benchmarks/check_released.py --base FOLDER --zephyr FOLDER

Of stablelm-2-1_6b and stablelm-2-zephyr-1_6b, by their Hub ids or in local folders:
keys, shapes and size; the ids of the embedded corpus against `AutoTokenizer`; of the
base model the known answer to token 9707 (secondary: one third-party note); logits and
greedy text in seven languages against transformers, both in fp32, one after the other
in memory. Bits per byte of each language are measured on the same parallel documents,
and nothing is expected of them. A check that fails is a line and exit code 1. All is
written to book/recorded/released.json.

    python benchmarks/check_released.py --small --base FOLDER --zephyr FOLDER --out FILE

takes models of other sizes in the same form: it tries this program and says nothing
about the weights.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm2_minimal.config import ModelConfig, UserError
from slm2_minimal.evaluate.bits import summarise, text_scores
from slm2_minimal.inference.generate import generate
from slm2_minimal.model import hub
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.teach.recorded import save_record
from slm2_minimal.text.corpus import LANGUAGES, load_corpus
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.tokenizer import load_tokenizer

BASE, ZEPHYR = "stabilityai/stablelm-2-1_6b", "stabilityai/stablelm-2-zephyr-1_6b"
RECORD = Path(__file__).parents[1] / "book" / "recorded" / "released.json"
PARAMETERS, TENSORS = 1_644_515_328, 340
KNOWN_TOKEN, KNOWN_ANSWER = 9707, [341, 11, 280]
CLOSE = 1e-3  # fp32 logits of two programs
PROMPT, WRITTEN = 16, 24  # tokens


@dataclass
class Report:
    """What was found of one model."""

    source: str
    checks: list[dict[str, Any]] = field(default_factory=list)
    bits_per_byte: dict[str, float] = field(default_factory=dict)

    def check(self, name: str, passed: bool, found: str) -> None:
        self.checks.append({"check": name, "passed": passed, "found": found})
        print(f"{'ok' if passed else 'FAILED'} | {self.source} | {name}: {found}", flush=True)

    @property
    def passed(self) -> bool:
        return all(check["passed"] for check in self.checks)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    begin = time.perf_counter()
    reports = {}
    for name in ("base", "zephyr"):
        reports[name] = Report(getattr(options, name))
        try:
            check_model(reports[name], options, known_answer=name == "base")
        except UserError as error:
            reports[name].check("it loads", False, str(error))

    import transformers

    results: dict[str, Any] = {name: asdict(report) for name, report in reports.items()}
    results |= {"transformers": transformers.__version__, "documents": options.documents}
    results |= {"small": options.small}
    command = "python benchmarks/check_released.py"
    save_record(options.out, command, results, time.perf_counter() - begin)
    return 0 if all(report.passed for report in reports.values()) else 1


def check_model(report: Report, options: argparse.Namespace, *, known_answer: bool) -> None:
    """All checks of one model.

    Raises:
        UserError: it cannot be had, or is another model or tokenizer.
    """
    folder = hub.resolve(report.source)
    model = StableLM2.from_pretrained(folder)
    check_form(report, folder, model.config, options.small)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(report, folder, tokenizer)
    if known_answer and not options.small:
        check_known_answer(report, model)

    # ours, then transformers' in the same memory
    prompts = {language: prompt(tokenizer, language) for language in LANGUAGES}
    ours = {language: answers(model, ids) for language, ids in prompts.items()}
    for language in LANGUAGES:
        texts = load_corpus(languages=[language], limit=options.documents)
        bits = summarise(text_scores(model, tokenizer, texts))[language].bits_per_byte
        report.bits_per_byte[language] = bits
        print(f"     {report.source} | {language}: {bits:.3f} bits per byte", flush=True)
    del model
    compare(report, folder, prompts, ours)


# The checks


def check_form(report: Report, folder: Path, config: ModelConfig, small: bool) -> None:
    """That nothing is missing: loading has held every key and shape against ours."""
    names, count = len(hub.stored_names(folder)), config.num_parameters()
    found = f"{names} tensors, {count:,} parameters"
    report.check("keys and shapes", small or (names, count) == (TENSORS, PARAMETERS), found)


def check_tokenizer(report: Report, folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    texts = [document.text for document in load_corpus()]
    different = [text for text in texts if theirs(text).input_ids != tokenizer.encode(text)]
    found = f"{len(texts) - len(different)} of {len(texts)} documents have the same ids"
    report.check("tokenizer", not different, found)


def check_known_answer(report: Report, model: StableLM2) -> None:
    with torch.no_grad():
        best = model(torch.tensor([[KNOWN_TOKEN]]))[0, 0].topk(3).indices.tolist()
    found = f"token {KNOWN_TOKEN} is followed by {best}, expected {KNOWN_ANSWER} (secondary)"
    report.check("known answer", best == KNOWN_ANSWER, found)


def prompt(tokenizer: Tokenizer, language: str) -> Tensor:
    """The beginning of the first document: (1, PROMPT)."""
    document = load_corpus(languages=[language], limit=1)[0]
    return torch.tensor([tokenizer.encode(document.text)[:PROMPT]])


def answers(model: StableLM2, ids: Tensor) -> tuple[Tensor, list[int]]:
    """The logits of a prompt, and the ids that follow it greedily."""
    with torch.no_grad():
        logits = model(ids)[0]
    written = generate(model, ids, WRITTEN, temperature=0)[0, ids.shape[1] :]
    return logits, written.tolist()


def compare(
    report: Report,
    folder: Path,
    prompts: dict[str, Tensor],
    ours: dict[str, tuple[Tensor, list[int]]],
) -> None:
    """Transformers' answers to the same prompts."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for language, ids in prompts.items():
        logits, written = ours[language]
        with torch.no_grad():
            expected = theirs(ids).logits[0]
        difference = (logits - expected).abs().max().item()
        tops = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
        found = f"{difference:.1e} apart at most, {tops:.0%} of the top tokens"
        report.check(f"logits, {language}", difference < CLOSE and tops == 1, found)

        mask = torch.ones_like(ids)
        # one length on both sides: an end of text ends neither
        options = {"max_new_tokens": WRITTEN, "do_sample": False, "eos_token_id": None}
        text = theirs.generate(ids, attention_mask=mask, pad_token_id=0, **options)
        same = sum(a == b for a, b in zip(text[0, ids.shape[1] :].tolist(), written, strict=True))
        found = f"{same} of {WRITTEN} tokens are the same"
        report.check(f"greedy text, {language}", same == WRITTEN, found)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The released weights, against transformers.")
    parser.add_argument("--base", default=BASE, help="a Hub id or a folder")
    parser.add_argument("--zephyr", default=ZEPHYR, help="a Hub id or a folder")
    parser.add_argument("--documents", type=int, default=8, help="a language, for bits per byte")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to write")
    parser.add_argument("--small", action="store_true", help="take models of other sizes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
