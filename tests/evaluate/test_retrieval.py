"""Probes are what they say, equal on every machine, and scored as by hand."""

import math
from dataclasses import astuple
from itertools import product

import pytest
import torch

from slm2_minimal.evaluate.retrieval import (
    KINDS,
    PHRASES,
    Cell,
    Outcome,
    Probe,
    Settings,
    keys,
    make_probe,
    measure,
    score_probes,
)
from slm2_minimal.evaluate.retrieval_maps import draw_maps, share, text_maps
from slm2_minimal.files import digest
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.corpus import LANGUAGES
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from tests.complaints import config_error, data_error
from tests.models import TINY, randomised

SETTINGS = Settings(samples=2, digits=3)
SHORTEST = {"passkey": 40, "needles": 140, "key-value": 40}  # of both tokenizers


def question_of(kind: str, language: str, prompt: str) -> str:
    """What stands at the end of a prompt, from its space on."""
    phrases = PHRASES[language]
    first = {"passkey": phrases.passkey, "needles": phrases.needle.partition("{")[0]}.get(kind, "")
    return prompt[prompt.rfind(f" {first}") :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_probe_has_its_length_and_one_answer(
    kind: str, language: str, tokenizer: Tokenizer
) -> None:
    """In both haystacks. To the length, less than a word or a pair is missing."""
    for haystack, length in product(("corpus", "filler"), (SHORTEST[kind], 300)):
        settings = Settings(haystack=haystack)
        probe = make_probe(tokenizer, settings, kind, language, length, 0.5)
        right = probe.values[0]
        prompt, value = tokenizer.encode(probe.prompt), tokenizer.encode(right)
        assert tokenizer.encode(probe.prompt + right) == prompt + value
        assert length - 20 < len(prompt) + len(value) <= length

        question = question_of(kind, language, probe.prompt)
        assert probe.prompt.count(f"{question}{right}.") == 1
        assert len(set(probe.values)) == 4
        for wrong in probe.values[1:]:
            assert f"{question}{wrong}." not in probe.prompt


def test_the_numbers_of_each_kind(tiny: SentencePieceTokenizer) -> None:
    passkey, needles, pairs = (make_probe(tiny, SETTINGS, kind, "de", 200, 0.5) for kind in KINDS)
    lead, told, _ = PHRASES["de"]
    assert passkey.prompt.count(lead) == 2
    assert needles.prompt.count(told.partition("{")[0]) == 4 + 1
    assert all(value in needles.prompt for value in needles.values)
    statements = pairs.prompt.split(". ")
    assert len(statements) > 10
    assert {each.strip().partition(":")[0] for each in statements} <= set(keys("de"))
    assert all(value in pairs.prompt for value in pairs.values)


@pytest.mark.parametrize("kind", KINDS)
def test_depth(kind: str, tiny: SentencePieceTokenizer) -> None:
    """The tokens before the statement, as a share of those around it."""
    for depth in (0.0, 0.3, 1.0):
        probe = make_probe(tiny, SETTINGS, kind, "fr", 600, depth)
        question = question_of(kind, "fr", probe.prompt)
        before, after = probe.prompt.split(f"{question}{probe.values[0]}.")
        begin, end = (len(tiny.encode(text)) for text in (before, after.removesuffix(question)))
        assert begin / (begin + end) == pytest.approx(depth, abs=0.06)


def test_probes_are_equal_on_every_machine(tokenizer: Tokenizer) -> None:
    """A digest of all kinds and languages. Where it changes on purpose, results of
    before can no longer be compared.
    """
    probes = [
        astuple(make_probe(tokenizer, SETTINGS, kind, language, 200, depth, number))
        for kind, language, depth, number in product(KINDS, LANGUAGES, (0.0, 0.5), range(2))
    ]
    assert len({prompt for _, prompt, _ in probes}) == len(probes)
    expected = {"arcade100k": "206bc54b880324e2", "tiny": "0226bc160c85a75b"}
    assert digest(probes)[:16] == expected[tokenizer.name]


def test_another_seed_gives_other_texts(tiny: SentencePieceTokenizer) -> None:
    one, other = (
        make_probe(tiny, Settings(seed=seed), "passkey", "en", 100, 0.5) for seed in (0, 1)
    )
    assert one.prompt != other.prompt
    assert one.values[0] != other.values[0]


def test_lengths_that_cannot_be(tiny: SentencePieceTokenizer) -> None:
    for kind in KINDS:
        message = data_error(lambda kind=kind: make_probe(tiny, SETTINGS, kind, "en", 9, 0.5))
        assert "lengths" in message
        assert "tokens more" in message
    assert "no more than" in data_error(
        lambda: make_probe(tiny, SETTINGS, "key-value", "en", 200_000, 0.5)
    )


def test_settings_that_cannot_be() -> None:
    for options, part in (
        ({"kinds": ["passkeys"]}, "kinds = 'passkeys': unknown; choose among passkey"),
        ({"languages": ["xx"]}, "languages = 'xx'"),
        ({"haystack": "hay"}, "haystack = 'hay'"),
        ({"depths": [0.5, 1.1]}, "depths = 1.1"),
        ({"depths": [math.nan]}, "depths = nan"),
        ({"samples": 0}, "samples = 0"),
        ({"digits": 0}, "digits = 0"),
    ):
        assert part in config_error(lambda options=options: Settings(**options))


def greedy_probe(model: StableLM2, tokenizer: Tokenizer, number: int) -> Probe | None:
    """One whose right value is what the model writes; None where that is no text."""
    prompt = f" Il {number} e"
    ids = tokenizer.encode(prompt)
    for _ in range(2):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    text = tokenizer.decode(ids[-2:])
    return Probe(0.5, prompt, [text, " 1", " 2"]) if tokenizer.encode(text) == ids[-2:] else None


@torch.no_grad()
def test_outcomes_by_hand(tiny: SentencePieceTokenizer) -> None:
    """The margin token by token, and greedy text by taking the likeliest each time."""
    model = randomised(TINY.replace(max_position_embeddings=128))
    settings = Settings(digits=1)
    probes = [make_probe(tiny, settings, "passkey", "it", 60, 0.5, n) for n in range(3)]
    probes.append(next(filter(None, (greedy_probe(model, tiny, n) for n in range(50)))))
    outcomes = score_probes(model, tiny, probes)
    assert [each.exact for each in outcomes] == [False, False, False, True]
    for probe, outcome in zip(probes[:3], outcomes, strict=False):
        prompt, sums = tiny.encode(probe.prompt), []
        for value in map(tiny.encode, probe.values):
            logits = model(torch.tensor([[*prompt, *value]]))[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(value) - 1)
            sums.append(sum(logits[t, v].item() for t, v in zip(places, value, strict=True)))
        assert outcome.margin == pytest.approx(sums[0] - max(sums[1:]), abs=1e-4)


def test_cells_and_maps(tiny: SentencePieceTokenizer) -> None:
    """Every probe is asked once and comes back in its cell: here what stands in the
    second half of a text is found, and of short ones half of the rest.
    """
    asked: list[Probe] = []

    def ask(probes: list[Probe]) -> list[Outcome]:
        asked.extend(probes)
        short = len(probes[0].prompt) < 400
        return [
            Outcome(probe.depth > 0.5 or (short and number % 2 == 0), 1.0)
            for number, probe in enumerate(probes)
        ]

    settings = Settings(("passkey",), ("en", "nl"), (100, 200), (0.0, 1.0), samples=2)
    groups = dict(measure(ask, tiny, settings))
    assert list(groups) == [
        f"passkey, {language}, {length} tokens"
        for language in ("en", "nl")
        for length in (100, 200)
    ]
    assert len({probe.prompt for probe in asked}) == len(asked) == 16

    cells = [cell for found in groups.values() for cell in found]
    assert cells[1] == Cell("passkey", "en", 100, 1.0, [True, True], [1.0, 1.0])
    assert cells[2] == Cell("passkey", "en", 200, 0.0, [False, False], [1.0, 1.0])
    assert share(cells) == (4 + 2 * 2 + 2) / 16
    lines = list(text_maps(cells))
    assert lines == [
        "passkey            100         200",
        "0.0              50% ▒        0%  ",
        "1.0             100% █      100% █",
        "language       passkey",
        "en               62% ▒",
        "nl               62% ▒",
    ]

    figure = draw_maps(cells)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["passkey, en", "passkey, nl", ""]
    assert figure.axes[0].images[0].get_array().tolist() == [[0.5, 0.0], [1.0, 1.0]]
