"""The offline tasks: made from held-out text only, balanced, and loaded by lm-eval from
anywhere.
"""

import json
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from slm2_minimal.config import RunConfig
from slm2_minimal.evaluate import local_tasks
from slm2_minimal.evaluate.local_tasks import BLOCK, SHOTS, Candidate, Item, in_blocks, sentences
from slm2_minimal.evaluate.minimal_pairs import FORMS, WORD, agreement, word_order
from slm2_minimal.evaluate.quantised import HELD_OUT_PERCENT
from slm2_minimal.text.corpus import LANGUAGES, load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

ITEMS: dict[str, list[Item]] = {
    path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for path in sorted(local_tasks.FOLDER.glob("*.jsonl"))
}
OF_BLOCKS = [name for name in ITEMS if "order" not in name and "agreement" not in name]
OF_PAIRS = [name for name in ITEMS if name not in OF_BLOCKS]
KINDS = ("cloze", "next", "order", "agreement", "translation")
BLIND: dict[str, Callable[[str], Any]] = {
    "shortest": len,
    "longest": lambda choice: -len(choice),
    "first in the alphabet": str.lower,
}


def right(item: Item) -> str:
    return item["choices"][item["answer"]]


def threes(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2)}


def texts(language: str, *, held_out: bool) -> str:
    """What the tiny preset holds out of a language, or what it trains on."""
    percent = RunConfig.preset("tiny").data.validation_percent
    documents = load_corpus(languages=[language])
    chosen = (one for one in documents if is_validation(one.id, percent) == held_out)
    return "\n\n\n".join(document.text for document in chosen)


# The files


def test_the_files_are_what_the_script_writes() -> None:
    made = local_tasks.files()
    there = {path.name: path.read_text(encoding="utf-8") for path in local_tasks.FOLDER.glob("*.*")}
    assert sorted(there) == sorted(made)
    assert [name for name in made if there[name] != made[name]] == []


def test_sizes() -> None:
    languages = {f"local_{kind}_{language}" for kind in KINDS for language in LANGUAGES}
    languages.remove("local_translation_en")
    assert set(ITEMS) == languages | {f"local_arithmetic_{digits}" for digits in range(1, 5)}
    sizes = {name: len(items) - SHOTS for name, items in ITEMS.items()}
    assert max(sizes.values()) == 100
    few = {name for name, size in sizes.items() if size < 60}
    assert few <= {
        "local_agreement_en",
        "local_agreement_nl",
        "local_arithmetic_1",
        "local_next_es",
        "local_next_it",
    }
    assert min(sizes.values()) >= 28


# What they are made from


def test_held_out_is_what_the_tiny_preset_holds_out() -> None:
    data = RunConfig.preset("tiny").data
    assert data.validation_percent == HELD_OUT_PERCENT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_items_are_of_unread_text(kind: str, language: str) -> None:
    held_out, trained = (texts(language, held_out=held) for held in (True, False))
    english = texts("en", held_out=True)
    between = {"cloze": " ", "next": "\n\n"}
    for item in ITEMS.get(f"local_{kind}_{language}", ()):
        context = item["context"]
        if kind == "translation":
            source = context.splitlines()[0].removeprefix("English phrase: ")
            assert source in english
            context = ""
        passage = context + between.get(kind, "") + right(item)
        assert passage in held_out
        assert passage not in trained


@pytest.mark.parametrize("kind", ["next", "translation"])
@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_wrong_choices_are_of_the_same_language(kind: str, language: str) -> None:
    held_out = texts(language, held_out=True)
    for item in ITEMS[f"local_{kind}_{language}"]:
        assert all(choice in held_out for choice in item["choices"])


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_sums(digits: int) -> None:
    lines = {
        line.partition(" = ")[0]
        for document in load_corpus(languages=["math"])
        for line in document.text.splitlines()
    }
    seen = set()
    for item in ITEMS[f"local_arithmetic_{digits}"]:
        one, plus, two, equals = item["context"].split(" ")
        assert (plus, equals) == ("+", "=")
        assert len(one) == len(two) == digits
        assert int(right(item)) == int(one) + int(two)
        assert not {f"{one} + {two}", f"{two} + {one}"} & lines
        seen.add(frozenset((one, two)))
    assert len(seen) == len(ITEMS[f"local_arithmetic_{digits}"])


# What may not give an answer away


@pytest.mark.parametrize("name", ITEMS)
def test_answers_are_balanced(name: str) -> None:
    items = ITEMS[name]
    choices = {len(item["choices"]) for item in items}
    assert choices == {BLOCK if name in OF_BLOCKS else 2}
    answers = Counter(item["answer"] for item in items[SHOTS:])
    assert len(set(answers.values())) == 1
    assert sorted(answers) == list(range(choices.pop()))


@pytest.mark.parametrize("name", ITEMS)
def test_nothing_stands_twice(name: str) -> None:
    items = ITEMS[name]
    assert all(len(set(item["choices"])) == len(item["choices"]) for item in items)
    assert len({(item["context"], right(item)) for item in items}) == len(items)


@pytest.mark.parametrize("name", OF_BLOCKS)
@pytest.mark.parametrize("rule", BLIND.values(), ids=list(BLIND))
def test_without_the_context_a_quarter_is_right(name: str, rule: Callable[[str], Any]) -> None:
    """Of cloze the rule sees the word alone: what follows is the same in all four."""
    scored = ITEMS[name][SHOTS:]
    hits = 0
    for item in scored:
        words = [choice.split(" ")[0].rstrip(".,;:!?”“»’…)") for choice in item["choices"]]
        seen = words if "cloze" in name else item["choices"]
        hits += seen.index(min(seen, key=rule)) == item["answer"]
    assert abs(hits / len(scored) - 1 / BLOCK) <= (0.02 if "cloze" in name else 0)


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.parametrize("rule", ["shortest", "longest"])
def test_the_length_finds_half_of_the_pairs(name: str, rule: str) -> None:
    scored = ITEMS[name][SHOTS:]
    hits = sum(min(item["choices"], key=BLIND[rule]) == right(item) for item in scored)
    three_errors = 3 * (0.25 / len(scored)) ** 0.5
    assert abs(hits / len(scored) - 0.5) <= three_errors


@pytest.mark.parametrize(("kind", "least"), [("next", 0.32), ("translation", 0.6)])
def test_who_reads_the_context_finds_more(kind: str, least: float) -> None:
    """Choices that share letters with the context, as names, numbers and relatives of
    its words do, are the right ones well above chance.
    """
    hits = []
    for name in OF_BLOCKS:
        for item in ITEMS[name][SHOTS:] if kind in name else ():
            context = threes(item["context"])
            shared = [len(threes(one) & context) / len(threes(one)) for one in item["choices"]]
            hits.append(shared.index(max(shared)) == item["answer"])
    assert sum(hits) / len(hits) > least


@pytest.mark.parametrize("language", LANGUAGES)
def test_pairs_of_order_have_the_same_words(language: str) -> None:
    for item in ITEMS[f"local_order_{language}"]:
        one, two = (WORD.findall(choice) for choice in item["choices"])
        assert sorted(one) == sorted(two)
        differ = [
            place for place, words in enumerate(zip(one, two, strict=True)) if len({*words}) > 1
        ]
        assert len(differ) == 2
        assert differ[1] - differ[0] == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_pairs_of_agreement_say_nothing_by_their_words(language: str) -> None:
    """Each form is as often wrong as right, so its frequency alone finds half."""
    forms = {frozenset(both.split("/")) for both in FORMS[language].split()}
    is_right, is_wrong = Counter[str](), Counter[str]()
    for item in ITEMS[f"local_agreement_{language}"]:
        good = WORD.findall(right(item))
        bad = WORD.findall(item["choices"][1 - item["answer"]])
        (differing,) = [both for both in zip(good, bad, strict=True) if both[0] != both[1]]
        assert frozenset(differing) in forms
        is_right[differing[0]] += 1
        is_wrong[differing[1]] += 1
    assert is_right == is_wrong


def test_contexts_fit_the_tiny_preset(tiny: SentencePieceTokenizer) -> None:
    window = RunConfig.preset("tiny").model.max_position_embeddings
    for items in ITEMS.values():
        prompts = (item["context"] + max(item["choices"], key=len) for item in items)
        longest = max(prompts, key=len)
        assert len(tiny.encode(longest)) < window


# How they are made


def test_sentences() -> None:
    german = "Am 28. Juni kam sie. Um 800 v. Chr. nicht. „Wer da?“, rief sie. „Ich.“ Er ging."
    assert sentences(german) == [
        "Am 28. Juni kam sie.",
        "Um 800 v. Chr. nicht.",
        "„Wer da?“, rief sie.",
        "„Ich.“",
        "Er ging.",
    ]
    assert sentences("¿Qué? —Nada… ¡Ya!") == ["¿Qué?", "—Nada…", "¡Ya!"]
    assert sentences("It is one sentence, e.g. this") == ["It is one sentence, e.g. this"]


@pytest.mark.parametrize(
    ("language", "sentence", "bad"),
    [
        ("en", "She put the cup down.", ["She put cup the down."]),
        ("en", "She told her that.", []),
        ("de", "Er gab dem Hund das gute Brot.", ["Er gab Hund dem das gute Brot."]),
        ("fr", "Il vient d'un village, dans la nuit.", ["Il vient d'un village, dans nuit la."]),
        ("nl", "Hij nam de grote hond mee.", []),  # "grote de hond" might be "de grote, de hond"
        ("pt", "Levou um guarda-chuva.", []),
    ],
)
def test_word_order_by_hand(language: str, sentence: str, bad: list[str]) -> None:
    assert [pair.bad for pair in word_order(sentence, language)] == bad


@pytest.mark.parametrize(
    ("language", "sentence", "bad"),
    [
        ("en", "The dogs were here.", ["The dogs was here."]),
        ("en", "The brakes, which is odd, held.", []),
        ("de", "Er ging mit dem Hund weg.", ["Er ging mit der Hund weg."]),
        ("de", "Das ist ein alter Hut.", []),  # an adjective between: the table asks for nouns
        ("es", "Vive en el pueblo.", ["Vive en la pueblo."]),
        ("es", "Ayer la vio.", []),
        ("es", "Habló con un estudiante.", []),
        ("fr", "Il entre dans la maison.", ["Il entre dans le maison."]),
        ("fr", "Je suis navré de le dire.", []),
        ("it", "Vide un uomo.", ["Vide una uomo."]),
        ("nl", "Zij zat in het huis.", ["Zij zat in de huis."]),
        ("nl", "Hij deed het toch.", []),
        ("pt", "Era uma casa.", ["Era um casa."]),
        ("pt", "Falou com a Ana do Porto.", []),
    ],
)
def test_agreement_by_hand(language: str, sentence: str, bad: list[str]) -> None:
    assert [pair.bad for pair in agreement(sentence, language)] == bad


def test_blocks_leave_out_what_gives_itself_away() -> None:
    names = ("bread", "water", "stone", "cheese")
    good = [Candidate("some", name, document=name) for name in names]
    assert len(in_blocks(good)) == 1
    told = Candidate("bread and", "wine", document="wine")
    assert in_blocks([*good[:3], told]) == []
    assert in_blocks([*good[:3], Candidate("some", "wine", document="bread")]) == []
    assert in_blocks([*good[:3], Candidate("some", "Wine", document="wine", kind="name")]) == []
    assert in_blocks([*good[:3], Candidate("some", "Water", document="wine")]) == []


# As lm-eval sees them


@pytest.fixture(scope="module")
def tasks() -> TaskManager:
    """Only ours: the index of all of lm-eval's takes long."""
    return TaskManager(include_path=local_tasks.FOLDER, include_defaults=False)


def test_names_and_groups(tasks: TaskManager) -> None:
    exact = {f"local_arithmetic_exact_{digits}" for digits in range(1, 5)}
    assert set(tasks.all_subtasks) == set(ITEMS) | exact
    assert tasks.all_tags == [f"local_{language}" for language in sorted(LANGUAGES)]
    groups = {name: tasks.task_index[name].cfg["task"] for name in tasks.all_groups}
    members = [member for name in groups.pop("local") for member in groups[name]]
    assert sorted(members) == tasks.all_subtasks


def test_tasks_load_from_anywhere_and_offline(
    tasks: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("a task asked for the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    names = ["local_cloze_de", "local_next_en", "local_order_fr"]
    loaded = tasks.load(names)["tasks"]
    for name, between in zip(names, (" ", "\n\n", ""), strict=True):
        task = loaded[name]
        task.build_all_requests(limit=1)
        first = ITEMS[name][SHOTS]
        requests = [instance.args for instance in task.instances]
        assert requests == [(first["context"], between + choice) for choice in first["choices"]]
        assert task.doc_to_target(task.eval_docs[0]) == first["answer"]
        assert [row["context"] for row in task.fewshot_docs()] == [
            row["context"] for row in ITEMS[name][:SHOTS]
        ]
        assert len(task.eval_docs) == len(ITEMS[name]) - SHOTS


def test_exact_sums(tasks: TaskManager) -> None:
    task = tasks.load(["local_arithmetic_exact_2"])["tasks"]["local_arithmetic_exact_2"]
    task.build_all_requests(limit=2)
    for instance, item in zip(task.instances, ITEMS["local_arithmetic_2"][SHOTS:], strict=False):
        assert instance.args[0] == item["context"]
        instance.resps = [f" {right(item)} "]
    task.apply_filters()
    for instance in task.instances:
        answer = instance.filtered_resps["none"]
        assert task.process_results(instance.doc, [answer]) == {"exact_match": 1.0}
        assert task.process_results(instance.doc, [answer + "0"]) == {"exact_match": 0.0}
