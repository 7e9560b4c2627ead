"""The examples that come with the package, and the rules by which answers are checked.

Translations of one another share their id, as in the corpus.
"""

import functools
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from slm2_minimal.config import DataError
from slm2_minimal.text.chat import Message
from slm2_minimal.text.conversations import HELD_OUT_TOPICS, INSTRUCTIONS
from slm2_minimal.text.corpus import LANGUAGES, load_corpus
from slm2_minimal.text.documents import nfc

Check: TypeAlias = Mapping[str, Any]  # {"kind": ...} and what that kind of rule needs
Languages: TypeAlias = Collection[str] | None  # None for all

DATA_DIR = Path(__file__).parent / "data"
FILES = {
    "instructions": INSTRUCTIONS,
    "preferences": DATA_DIR / "preferences.jsonl",
    "questions": DATA_DIR / "questions.jsonl",
}
# Held out is a tenth of the instructions and of the pairs, by HELD_OUT_TOPICS, and a
# third of the questions.
SPLITS = ("train", "held_out")
AROUND = " .,:;!?…¡¿“”„«»‘’"  # what may stand around an answer without changing it


@dataclass(frozen=True)
class Instruction:
    """A conversation; its last message is a reference answer, which follows `check`."""

    id: str
    language: str
    topic: str
    messages: list[Message]
    check: Check


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt. Where there is a `check`, only `chosen` follows it."""

    id: str
    language: str
    topic: str
    prompt: list[Message]
    chosen: str
    rejected: str
    why: str  # what is wrong with `rejected`
    check: Check | None = None


@dataclass(frozen=True)
class Question:
    """A question about the model itself, and the name of the fact that answers it."""

    id: str
    language: str
    fact: str
    question: str
    check: Check


def load_instructions(split: str = "train", languages: Languages = None) -> list[Instruction]:
    """Instructions and dialogues. Raises DataError for an unknown split or language."""
    return [Instruction(**record) for record in _records("instructions", split, languages)]


def load_preferences(split: str = "train", languages: Languages = None) -> list[Preference]:
    """Pairs of a better and a worse answer, by the same arguments."""
    return [Preference(**record) for record in _records("preferences", split, languages)]


def load_questions(split: str = "train", languages: Languages = None) -> list[Question]:
    """Questions about the model itself, by the same arguments."""
    return [Question(**record) for record in _records("questions", split, languages)]


def load_facts() -> dict[str, dict[str, dict[str, str]]]:
    """Who the model is: by language and name of a fact, the "right" and the "wrong"."""
    return tomllib.loads((DATA_DIR / "facts.toml").read_text(encoding="utf-8"))


def follows(check: Check, answer: str) -> bool:
    """Whether an answer follows a rule; case and punctuation around it do not matter.

    `contains`, `equals`, `starts_with`: one of `any`, as whole words. `lines`,
    `words_at_most`: as `count` says. `language`: the one that `language_of` finds.
    Raises DataError for another kind.
    """
    text = _plain(answer)
    options = [_plain(option) for option in check.get("any", [])]
    match check["kind"]:
        case "equals":
            return text in options
        case "contains" | "starts_with" as kind:
            before = "^" if kind == "starts_with" else r"(?<!\w)"
            return any(re.search(rf"{before}{re.escape(option)}(?!\w)", text) for option in options)
        case "lines":
            return len(answer.strip().splitlines()) == check["count"]
        case "words_at_most":
            return 1 <= len(re.findall(r"\S*\w\S*", text)) <= check["count"]
        case "language":
            return language_of(answer) == check["language"]
    raise DataError(f"check.kind = {check['kind']!r}: unknown; see slm2_minimal.align.examples")


def language_of(text: str) -> str | None:
    """Whose corpus makes the words likeliest; None where no corpus has any of them."""
    # the corpora are about as large, so a word that is new to all of them tells nothing
    scores = {
        language: sum(math.log(count[word] + 0.1) for word in _words(text))
        for language, count in _word_counts().items()
    }
    return max(scores, key=scores.__getitem__) if len(set(scores.values())) > 1 else None


@functools.cache
def _word_counts() -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {language: Counter() for language in LANGUAGES}
    for document in load_corpus(languages=LANGUAGES):
        counts[document.language].update(_words(document.text))
    return counts


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", nfc(text).casefold())


def _plain(text: str) -> str:
    return " ".join(nfc(text).casefold().split()).strip(AROUND)


def _records(name: str, split: str, languages: Languages) -> Iterator[dict[str, Any]]:
    """The records of a file that are in this split and in these languages."""
    if split not in SPLITS:
        raise DataError(f"split = {split!r}: unknown; one of {', '.join(SPLITS)}")
    if languages is not None and (isinstance(languages, str) or set(languages) - set(LANGUAGES)):
        raise DataError(f"languages = {languages!r}: must be a list of {', '.join(LANGUAGES)}")

    for line in FILES[name].read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        by_topic = "held_out" if record.get("topic") in HELD_OUT_TOPICS else "train"
        its_split = record.pop("split", by_topic)
        if its_split == split and (languages is None or record["language"] in languages):
            yield record
