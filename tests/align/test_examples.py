"""The data for aligning as it is promised, and the rules that check answers."""

import itertools
import json
import re
import unicodedata
from collections import Counter
from typing import Any

import pytest

from slm2_minimal import ModelConfig, load_corpus, load_tokenizer
from slm2_minimal.align.examples import (
    DATA_DIR,
    FILES,
    SPLITS,
    follows,
    language_of,
    load_facts,
    load_instructions,
    load_preferences,
    load_questions,
)
from slm2_minimal.text.chat import ROLES, check_messages, render
from slm2_minimal.text.conversations import HELD_OUT_TOPICS, embedded_instructions, messages_of
from slm2_minimal.text.corpus import LANGUAGES
from tests.complaints import data_error

INSTRUCTIONS = [example for split in SPLITS for example in load_instructions(split)]
PAIRS = [pair for split in SPLITS for pair in load_preferences(split)]
QUESTIONS = [question for split in SPLITS for question in load_questions(split)]
REASONS = {
    "wrong fact",
    "wrong language",
    "ignores the instruction",
    "rambles",
    "impolite",
    "too long",
    "does not help",
}
LOADERS = {
    "instructions": load_instructions,
    "preferences": load_preferences,
    "questions": load_questions,
}


# What was promised


def test_sizes() -> None:
    assert len(INSTRUCTIONS) >= 600
    assert len(PAIRS) >= 300
    assert len(QUESTIONS) >= 60
    for language in LANGUAGES:
        of_language = [e for e in INSTRUCTIONS if e.language == language]
        dialogues = [e for e in of_language if sum(m["role"] == "user" for m in e.messages) > 1]
        assert len(of_language) >= 80
        assert 0.15 < len(dialogues) / len(of_language) < 0.25
        assert sum(pair.language == language for pair in PAIRS) >= 40
        assert sum(question.language == language for question in QUESTIONS) == 9


@pytest.mark.parametrize("name", LOADERS)
def test_splits(name: str) -> None:
    """Each record is in one split, and each language in both; a tenth is held out."""
    load: Any = LOADERS[name]
    train, held_out = load("train"), load("held_out")
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    assert len(train) + len(held_out) == len(lines)
    assert {e.language for e in train} == {e.language for e in held_out} == set(LANGUAGES)
    if name == "questions":
        assert len(held_out) * 3 == len(lines)
    else:
        assert {e.topic for e in held_out} == set(HELD_OUT_TOPICS)
        assert not {e.topic for e in train} & set(HELD_OUT_TOPICS)
        assert 0.09 < len(held_out) / len(lines) < 0.13


def test_what_a_source_reads_is_what_is_not_held_out() -> None:
    read = [(d.id, d.language, d.domain, messages_of(d.text)) for d in embedded_instructions()]
    train = [(e.id, e.language, e.topic, e.messages) for e in load_instructions("train")]
    assert read == train


@pytest.mark.parametrize("records", [INSTRUCTIONS, PAIRS, QUESTIONS])
def test_ids_are_unique_in_a_language_and_translations_agree(records: list[Any]) -> None:
    assert len({(e.language, e.id) for e in records}) == len(records)
    by_id: dict[str, list[Any]] = {}
    for example in records:
        by_id.setdefault(example.id, []).append(example)
    shared = [group for group in by_id.values() if len(group) > 1]
    assert shared, "some are parallel"
    for group in shared:
        kinds = {example.check["kind"] if example.check else None for example in group}
        assert len({getattr(e, "topic", getattr(e, "fact", "")) for e in group}) == 1
        if records is not QUESTIONS:
            assert len(group) == len(LANGUAGES)
            assert len(kinds) == 1


def test_every_kind_of_rule_is_in_both_splits() -> None:
    kinds = [{e.check["kind"] for e in load_instructions(split)} for split in SPLITS]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 6


# Conversations


def test_roles_alternate_and_an_answer_ends_them() -> None:
    conversations = [e.messages for e in INSTRUCTIONS]
    conversations += [[*p.prompt, {"role": "assistant", "content": p.chosen}] for p in PAIRS]
    for messages in conversations:
        check_messages(messages)
        roles = [message["role"] for message in messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert set(roles) <= set(ROLES)
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert turns


def test_text_is_clean() -> None:
    for path in (*FILES.values(), DATA_DIR / "facts.toml"):
        text = path.read_text(encoding="utf-8")
        assert unicodedata.is_normalized("NFC", text), path
        assert not re.search(r"[\x00-\x09\x0b-\x1f\xa0\u2028\u2029]|<\||  |’’", text), path
    texts = [message["content"] for e in INSTRUCTIONS for message in e.messages]
    texts += [text for p in PAIRS for text in (p.chosen, p.rejected)]
    assert all(text == text.strip() for text in texts)


def test_no_prompt_is_asked_twice() -> None:
    asked = [(e.language, json.dumps(e.messages[:-1])) for e in INSTRUCTIONS]
    asked += [(p.language, json.dumps(p.prompt)) for p in PAIRS]
    asked += [(q.language, q.question) for q in QUESTIONS]
    assert [prompt for prompt, count in Counter(asked).items() if count > 1] == []


def test_lengths_fit_the_toy() -> None:
    tokenizer = load_tokenizer("tiny")
    conversations = [e.messages for e in INSTRUCTIONS]
    for pair, text in itertools.product(PAIRS, ("chosen", "rejected")):
        answer = {"role": "assistant", "content": getattr(pair, text)}
        conversations.append([*pair.prompt, answer])
    lengths = [len(render(messages, tokenizer=tokenizer)[0]) for messages in conversations]
    assert max(lengths) < 400


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_are_mostly_known(language: str) -> None:
    """The toy has met nine words of ten; those of other languages are left out."""
    pattern = re.compile(r"[^\W\d_]+")
    corpus = load_corpus(languages=[language, "code"])
    known = set(pattern.findall("\n".join(d.text for d in corpus).casefold()))
    texts = [m["content"] for e in INSTRUCTIONS if e.language == language for m in e.messages]
    texts += [p.chosen for p in PAIRS if p.language == language]
    texts += [q.question for q in QUESTIONS if q.language == language]
    words = [word for text in texts for word in pattern.findall(text.casefold())]
    assert sum(word in known for word in words) / len(words) > 0.9


# Answers and their rules


def test_every_reference_follows_its_rule() -> None:
    wrong = [e for e in INSTRUCTIONS if not follows(e.check, e.messages[-1]["content"])]
    assert wrong == []


def test_of_a_pair_only_the_chosen_answer_follows_the_rule() -> None:
    with_rule = [pair for pair in PAIRS if pair.check]
    assert len(with_rule) > len(PAIRS) / 2
    for pair in with_rule:
        assert pair.check
        assert follows(pair.check, pair.chosen), pair
        assert not follows(pair.check, pair.rejected), pair
    need_one = {"wrong fact", "wrong language", "ignores the instruction"}
    assert {pair.why for pair in PAIRS if not pair.check}.isdisjoint(need_one)


def test_the_better_answer_cannot_be_told_by_its_length() -> None:
    assert {pair.why for pair in PAIRS} == REASONS
    tokenizer = load_tokenizer("tiny")
    for language in LANGUAGES:
        pairs = [pair for pair in PAIRS if pair.language == language]
        in_characters = sum(len(p.chosen) > len(p.rejected) for p in pairs)
        in_tokens = sum(
            len(tokenizer.encode(p.chosen)) > len(tokenizer.encode(p.rejected)) for p in pairs
        )
        assert 0.4 < in_characters / len(pairs) < 0.6
        assert 0.4 < in_tokens / len(pairs) < 0.6


def test_answers_are_in_the_language_that_is_said() -> None:
    """Of short answers the rule that names a language cannot be sure."""
    answers = [(p.language, p.chosen) for p in PAIRS]
    answers += [(p.language, p.rejected) for p in PAIRS if p.why != "wrong language"]
    answers += [
        (e.language, e.messages[-1]["content"])
        for e in INSTRUCTIONS
        if e.check["kind"] != "language"
    ]
    assert [(la, text) for la, text in answers if len(text) > 30 and language_of(text) != la] == []
    for pair in PAIRS:
        if pair.why == "wrong language":
            assert language_of(pair.rejected) != pair.language


# The model itself


def test_the_size_is_told_truly() -> None:
    assert round(ModelConfig.preset("tiny").num_parameters() / 1e6) == 5
    assert "five million" in load_facts()["en"]["size"]["right"]


def test_facts() -> None:
    facts = load_facts()
    assert tuple(facts) == LANGUAGES
    names = list(facts["en"])
    for language in LANGUAGES:
        assert list(facts[language]) == names
        assert all(set(fact) == {"right", "wrong"} for fact in facts[language].values())
    assert {question.fact for question in QUESTIONS} == set(names)


def test_a_right_fact_answers_its_questions_and_a_wrong_one_does_not() -> None:
    facts = load_facts()
    for question in QUESTIONS:
        fact = facts[question.language][question.fact]
        assert follows(question.check, fact["right"]), question
        assert not follows(question.check, fact["wrong"]), question


def test_an_unseen_question_asks_for_a_fact_that_was_trained() -> None:
    trained = {(q.language, q.fact) for q in load_questions("train")}
    assert {(q.language, q.fact) for q in load_questions("held_out")} <= trained


# The rules themselves


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"kind": "contains", "any": ["six", "6"]}, "It costs 6 euros.", "It costs 16 euros."),
        ({"kind": "contains", "any": ["s'il vous plaît"]}, "Oui, S'il vous plaît !", "Oui."),
        ({"kind": "equals", "any": ["yes"]}, " Yes!\n", "yes, it is"),
        ({"kind": "equals", "any": ['print("a")']}, 'print("a")', 'print("a"'),
        ({"kind": "equals", "any": ["5"]}, "5.", "-5"),
        ({"kind": "starts_with", "any": ["Because"]}, "because of rain", "It is because of rain"),
        ({"kind": "starts_with", "any": ["No"]}, "No, never.", "Nobody"),
        ({"kind": "lines", "count": 2}, "red\nblue\n", "red, blue"),
        ({"kind": "words_at_most", "count": 2}, "Good night !", "a very good night"),
        ({"kind": "words_at_most", "count": 2}, "Yes.", " … "),
        ({"kind": "language", "language": "nl"}, "De deur staat open.", "La porte est ouverte."),
        ({"kind": "language", "language": "en"}, "The door.", "123 !"),
    ],
)
def test_rules(check: dict[str, Any], good: str, bad: str) -> None:
    assert follows(check, good)
    assert not follows(check, bad)
    assert not follows(check, "")


def test_decomposed_letters_are_the_same_letters() -> None:
    assert follows({"kind": "equals", "any": ["sí"]}, unicodedata.normalize("NFD", "Sí."))


def test_the_language_of_unknown_words() -> None:
    assert language_of("Xyzzy qwrt 12") is None


def test_choosing_languages() -> None:
    chosen = load_instructions(languages=["pt", "fr"])
    assert {example.language for example in chosen} == {"pt", "fr"}


@pytest.mark.parametrize("load", LOADERS.values())
def test_bad_choices(load: Any) -> None:
    assert data_error(lambda: load("test")) == "split = 'test': unknown; one of train, held_out"
    for languages in ("en", ["en", "xx"]):
        message = data_error(lambda chosen=languages: load(languages=chosen))
        assert message.startswith(f"languages = {languages!r}: must be a list of en, de")


def test_an_unknown_rule() -> None:
    message = data_error(lambda: follows({"kind": "rhymes"}, "a"))
    assert message.startswith("check.kind = 'rhymes': unknown")
