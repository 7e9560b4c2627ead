"""Tasks that need no network, made from the held-out part of the embedded corpus.

    python -m slm2_minimal.evaluate.local_tasks

writes `tasks/local`: items as JSON lines, and the YAML files by which lm-eval knows
them. The items come from the documents that the tiny preset holds out, as does any run
that reads the embedded corpus with `data.validation_percent = 10`. Items with four
choices come in blocks of four: in a block the choices are the same and each is right
once, so that whoever does not read the context gets exactly a quarter right.
"""

import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm2_minimal.evaluate.minimal_pairs import FORMS, WORD, Pair, agreement, word_order
from slm2_minimal.evaluate.quantised import HELD_OUT_PERCENT
from slm2_minimal.files import whole_file
from slm2_minimal.text.corpus import LANGUAGES, load_corpus
from slm2_minimal.text.documents import Document, is_validation

FOLDER = Path(__file__).parent / "tasks" / "local"
BLOCK = 4  # items that share their choices
SHOTS = 4  # the first items of a task: examples for a prompt, never scored
MOST_ITEMS = SHOTS + 100  # of a task in a language
SENTENCE_LENGTHS = range(40, 181)  # in characters
TRANSLATED_LENGTHS = range(40, 121)
OPENING_WORDS = 12  # of a paragraph that is a choice
WORDS_AFTER = 6  # at most, of the sentence whose word is left out
TOLD = ("dialogues", "letters", "stories")
SENTENCE_END = re.compile(
    # no ordinal ("4. Mai") and no abbreviation of one or two letters ("v. Chr.")
    r"(?<!\d)(?<!\b\w)(?<!\b\w\w)[.!?…]+ ?[”“»’]? (?=[“„«‘¿¡—]?[A-ZÀ-Þ])"
)
NAMES = {
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "nl": "Dutch",
    "pt": "Portuguese",
}
ADDITION = re.compile(r"^(\d+) \+ (\d+) =", re.MULTILINE)

DIGITS = (1, 2, 3, 4)
TRIES = 2000  # at blocks of sums: of one digit there are few
# between context and choice, where it is no space
DELIMITERS = {"local_next": "\n\n", "local_order": "", "local_agreement": ""}

Item = dict[str, Any]  # "context", "choices", and "answer": the right one's number


@dataclass(frozen=True)
class Candidate:
    """What may become an item: `context`, then `right`, then `rest`.

    A block is of one `kind`, of candidates whose `likeness` is next to each other.
    """

    context: str
    right: str
    document: str
    kind: str = ""
    likeness: str | int = 0
    rest: str = ""

    def fits(self, other: "Candidate") -> bool:
        """Whether both may stand in one block: neither gives the other away."""
        told = self.right in other.context + other.rest or other.right in self.context + self.rest
        same = self.document == other.document or self.right.lower() == other.right.lower()
        return self.kind == other.kind and not told and not same


def load(items: str, **_: object) -> dict[str, Any]:
    """The items of a file in `tasks/local` as lm-eval's `custom_dataset` wants them: a
    `datasets.Dataset` to score, `test`, and one of examples, `fewshot`.
    """
    from datasets import Dataset

    lines = (FOLDER / f"{items}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {"fewshot": Dataset.from_list(rows[:SHOTS]), "test": Dataset.from_list(rows[SHOTS:])}


def held_out(language: str) -> list[Document]:
    """The documents of the embedded corpus that the tiny preset holds out."""
    documents = load_corpus(languages=[language])
    return [document for document in documents if is_validation(document.id, HELD_OUT_PERCENT)]


def sentences(paragraph: str) -> list[str]:
    """The paragraph cut behind the ends of sentences that are plain to see."""
    ends = [match.end() for match in SENTENCE_END.finditer(paragraph)]
    starts = zip([0, *ends], [*ends, len(paragraph)], strict=True)
    return [paragraph[start:end].strip() for start, end in starts]


# Four choices


def cloze(language: str) -> Iterator[Candidate]:
    """Which word was here: two words of a paragraph, each with the sentence before its
    own. Alike are words that end alike.
    """
    rng = random.Random(f"cloze {language}")
    for document in held_out(language):
        for paragraph in document.text.split("\n\n"):
            found = list(_words_to_leave_out(paragraph, document.id))
            yield from rng.sample(found, min(2, len(found)))


def _words_to_leave_out(paragraph: str, document: str) -> Iterator[Candidate]:
    """Words of five letters or more that the paragraph has once."""
    before = ""
    for sentence in sentences(paragraph):
        for match in list(WORD.finditer(sentence))[4:]:
            word = match[0]
            start, end = match.span()
            alone = sentence[start - 1] == " " and sentence[end : end + 1] not in ("-", "'", "’")
            if len(word) >= 5 and alone and paragraph.lower().count(word.lower()) == 1:
                context = f"{before} {sentence[:start]}".strip()
                kind = "name" if word[0].isupper() else "word"
                rest = " ".join(sentence[end:].split(" ")[: 1 + WORDS_AFTER])
                yield Candidate(context, word, document, kind, word[::-1], rest)
        before = sentence


def next_paragraph(language: str) -> Iterator[Candidate]:
    """Which paragraph comes next, by its first words. Alike are those of texts that
    tell, those of texts that explain, and openings of one length.
    """
    for document in held_out(language):
        paragraphs = document.text.split("\n\n")
        for context, following in itertools.pairwise(paragraphs):
            words = following.split(" ")
            if len(context.split(" ")) >= OPENING_WORDS < len(words):
                opening = " ".join(words[:OPENING_WORDS])
                kind = "told" if document.domain in TOLD else "explained"
                yield Candidate(context, opening, document.id, kind, len(opening))


def translation(language: str) -> Iterator[Candidate]:
    """Which sentence is the translation of the English one, of sentences equally long.
    Only from paragraphs that have as many sentences in both languages.
    """
    prompt = "English phrase: {}\n" + f"{NAMES[language]} phrase:"
    for english, document in zip(held_out("en"), held_out(language), strict=True):
        paragraphs = zip(english.text.split("\n\n"), document.text.split("\n\n"), strict=True)
        for one, other in paragraphs:
            sources, targets = sentences(one), sentences(other)
            if len(sources) != len(targets):
                continue
            for source, target in zip(sources, targets, strict=True):
                if len(source) in TRANSLATED_LENGTHS and len(target) in TRANSLATED_LENGTHS:
                    context = prompt.format(source)
                    yield Candidate(context, target, document.id, likeness=len(target))


def in_blocks(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Blocks of candidates that fit, next to each other in their likeness. Those left
    over are in none.
    """
    left = sorted(candidates, key=lambda candidate: (candidate.kind, candidate.likeness))
    blocks = []
    while left:
        block = [left.pop(0)]
        for candidate in list(left):
            if len(block) < BLOCK and all(candidate.fits(other) for other in block):
                block.append(candidate)
                left.remove(candidate)
        if len(block) == BLOCK:
            blocks.append(block)
    return blocks


def block_items(block: Sequence[Candidate]) -> list[Item]:
    """Each candidate's context with what is right for any of them."""
    return [
        {
            "context": one.context,
            "choices": [other.right + one.rest for other in block],
            "answer": answer,
        }
        for answer, one in enumerate(block)
    ]


def choice_items(candidates: Iterable[Candidate], seed: str) -> list[Item]:
    """At most MOST_ITEMS items of the candidates' blocks, in an order of chance."""
    blocks = in_blocks(candidates)
    random.Random(seed).shuffle(blocks)
    return [item for block in blocks[: MOST_ITEMS // BLOCK] for item in block_items(block)]


# Arithmetic


def additions(digits: int) -> list[Item]:
    """Sums of two numbers of so many digits that stand nowhere in the corpus; the four
    results of a block are as far apart as 1, 10, 100 or 1,000.
    """
    rng = random.Random(f"additions {digits}")
    smallest = 10 ** (digits - 1)
    texts = [document.text for document in load_corpus(languages=["math"])]
    known = {frozenset(map(int, found)) for text in texts for found in ADDITION.findall(text)}

    items: list[Item] = []
    for _ in range(TRIES):
        step = 10 ** rng.randrange(digits)
        first = rng.randrange(2 * smallest, 20 * smallest - 1)
        sums = range(first, first + BLOCK * step, step)
        block = [_addends(rng, total, smallest) for total in sums]
        pairs = {frozenset(pair) for pair in block if pair}
        if len(pairs) < BLOCK or pairs & known or len(items) == MOST_ITEMS:
            continue
        known |= pairs
        choices = [str(total) for total in sums]
        for answer, pair in enumerate(block):
            assert pair
            context = f"{pair[0]} + {pair[1]} ="
            items.append({"context": context, "choices": choices, "answer": answer})
    return items


def _addends(rng: random.Random, total: int, smallest: int) -> tuple[int, int] | None:
    """Two numbers of that sum from `smallest` to below ten times it, if there are."""
    least = max(smallest, total - (10 * smallest - 1))
    most = min(10 * smallest - 1, total - smallest)
    if least > most:
        return None
    one = rng.randint(least, most)
    return one, total - one


# Two choices


def pairs_of_order(language: str) -> list[Pair]:
    """One pair of each sentence, in an order of chance."""
    rng = random.Random(f"order {language}")
    faults = (list(word_order(sentence, language)) for sentence in _sentences(language))
    pairs = [rng.choice(found) for found in faults if found]
    return rng.sample(pairs, min(len(pairs), MOST_ITEMS))


def pairs_of_agreement(language: str) -> list[Pair]:
    """Pairs two by two: where one has "is" for "are", the next has "are" for "is". So
    whoever only knows which word is frequent gets half right. One pair of a sentence.
    """
    rng = random.Random(f"agreement {language}")
    by_wrong: dict[str, list[Pair]] = defaultdict(list)
    for sentence in _sentences(language):
        for pair in agreement(sentence, language):
            by_wrong[pair.wrong].append(pair)

    # the rarest forms choose their sentences first
    forms = [forms.split("/") for forms in FORMS[language].split()]
    forms.sort(key=lambda both: min(len(by_wrong[form]) for form in both))
    couples: list[tuple[Pair, Pair]] = []
    used: set[str] = set()
    for one, two in forms:
        for pair in by_wrong[one]:
            others = [other for other in by_wrong[two] if other.good not in used | {pair.good}]
            if pair.good not in used and others:
                couples.append((pair, others[0]))
                used |= {pair.good, others[0].good}
    rng.shuffle(couples)
    return [pair for couple in couples[: MOST_ITEMS // 2] for pair in couple]


def pair_items(pairs: Sequence[Pair], seed: str) -> list[Item]:
    """Both sentences of each pair. Of two pairs in a row, the first sentence is right
    in one and the second in the other.
    """
    rng = random.Random(seed)
    items = []
    answer = 0
    for number, pair in enumerate(pairs):
        answer = 1 - answer if number % 2 else rng.randrange(2)
        choices = [pair.bad, pair.good] if answer else [pair.good, pair.bad]
        items.append({"context": "", "choices": choices, "answer": answer})
    return items


def _sentences(language: str) -> list[str]:
    """Whole sentences of the held-out documents, of a line or two."""
    paragraphs = [text for doc in held_out(language) for text in doc.text.split("\n\n")]
    found = [sentence for paragraph in paragraphs for sentence in sentences(paragraph)]
    return [sentence for sentence in dict.fromkeys(found) if len(sentence) in SENTENCE_LENGTHS]


# Files


def all_items() -> dict[str, list[Item]]:
    """The items of every task, by their file's name."""
    items = {}
    for language in LANGUAGES:
        items[f"local_cloze_{language}"] = choice_items(cloze(language), language)
        items[f"local_next_{language}"] = choice_items(next_paragraph(language), language)
        items[f"local_order_{language}"] = pair_items(pairs_of_order(language), language)
        items[f"local_agreement_{language}"] = pair_items(pairs_of_agreement(language), language)
        if language in NAMES:
            items[f"local_translation_{language}"] = choice_items(translation(language), language)
    for digits in DIGITS:
        items[f"local_arithmetic_{digits}"] = additions(digits)
    return items


def task_files(items: Iterable[str]) -> dict[str, str]:
    """The YAML of each task and group, by the file's name."""
    files = {}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in items:
        group, _, part = name.rpartition("_")
        files[f"{name}.yaml"] = _task(name, "choice", name, part)
        groups[group].append(name)
        if group == "local_arithmetic":
            exact = f"{group}_exact_{part}"
            files[f"{exact}.yaml"] = _task(exact, "exact", name, part)
            groups[f"{group}_exact"].append(exact)

    for group, names in groups.items():
        metrics = ["exact_match"] if group.endswith("_exact") else ["acc", "acc_norm"]
        mean = "".join(f"  - metric: {metric}\n" for metric in metrics)
        files[f"{group}.yaml"] = _group(group, names) + f"aggregate_metric_list:\n{mean}"
    files["local.yaml"] = _group("local", list(groups))
    return files


def _task(name: str, template: str, items: str, part: str) -> str:
    text = f"include: {template}_template\ntask: {name}\ndataset_kwargs:\n  items: {items}\n"
    group = name.removesuffix(f"_{part}")
    if group in DELIMITERS:
        text += f"target_delimiter: {json.dumps(DELIMITERS[group])}\n"
    return text + (f"tag: local_{part}\n" if part in LANGUAGES else "")


def _group(name: str, members: Sequence[str]) -> str:
    tasks = "".join(f"  - {member}\n" for member in members)
    return f"group: {name}\ntask:\n{tasks}metadata:\n  version: 1.0\n"


def files() -> dict[str, str]:
    """Every file that is made here, by its name in `tasks/local`."""
    items = all_items()
    lines = {
        f"{name}.jsonl": "".join(
            json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows
        )
        for name, rows in items.items()
    }
    return lines | task_files(items)


def main() -> None:
    made = files()
    for name, content in made.items():
        if name.endswith(".jsonl"):
            print(f"{name:<30} {content.count(chr(10)) - SHOTS:>4} items to score")
    for name, content in made.items():
        with whole_file(FOLDER / name) as file:
            file.write(content.encode())
    size = sum(len(content.encode()) for content in made.values())
    print(f"{FOLDER}: {len(made)} files, {size:,} bytes")


if __name__ == "__main__":
    main()
