"""Bits per byte by hand, and what they may not depend on."""

import math

import pytest
import torch

from slm2_minimal.config import DataError
from slm2_minimal.evaluate.bits import (
    TextScore,
    bits_per_byte,
    scored_bytes,
    summarise,
    text_scores,
)
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.documents import Document
from slm2_minimal.text.tokenizer import Arcade100k, SentencePieceTokenizer
from tests.models import TINY, randomised

TEXTS = {"en": "The baker opened the door and went out.", "de": "Größe, 12 Äpfel; dann fuhr er."}


def document(text: str, language: str = "en", name: str = "a") -> Document:
    return Document(name, language, "stories", "", text)


@pytest.fixture(scope="module")
def model() -> StableLM2:
    return randomised(TINY)


@pytest.fixture
def documents() -> list[Document]:
    return [document(text, language) for language, text in TEXTS.items()]


@torch.no_grad()
def direct(model: StableLM2, ids: list[int], first: int) -> float:
    """Minus the log-probability of the tokens from `first` on, given all before."""
    log_probs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    return -log_probs.gather(1, torch.tensor(ids[1:])[:, None])[first - 1 :].sum().item()


def test_a_perplexity_is_the_direct_sum(
    model: StableLM2, tiny: SentencePieceTokenizer, documents: list[Document]
) -> None:
    """The first token is not scored, nor its bytes; the end is, and has none."""
    found = summarise(text_scores(model, tiny, documents))
    for language, text in TEXTS.items():
        ids = [*tiny.encode(text), tiny.eos_token_id]
        nats, tokens = direct(model, ids, 1), len(ids) - 1
        size = len(text.encode()) - len(tiny.token_bytes(ids[0]))
        assert found[language].tokens == tokens
        assert found[language].bytes == size
        assert found[language].perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert found[language].bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize(("context", "stride"), [(8, None), (8, 3), (8, 1), (5, 5), (48, 48)])
def test_every_token_is_scored_once_after_what_its_window_holds(
    model: StableLM2, tiny: SentencePieceTokenizer, context: int, stride: int | None
) -> None:
    text = TEXTS["de"] * 3
    ids = [*tiny.encode(text), tiny.eos_token_id]
    [score] = text_scores(model, tiny, [document(text)], stride, context)
    expected, first = 0.0, 1
    while first < len(ids):
        step = context if first == 1 else stride or context
        end = min(first + step, len(ids))
        begin = max(0, end - 1 - context)
        expected += direct(model, ids[begin:end], first - begin)
        first = end
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert score.tokens == len(ids) - 1


def test_bits_do_not_depend_on_the_tokenizer(
    tiny: SentencePieceTokenizer, arcade: Arcade100k
) -> None:
    """A model that finds every byte equally likely, in tokens of any length."""
    for tokenizer in (tiny, arcade):
        scores = []
        for language, text in TEXTS.items():
            ids = tokenizer.encode(text)
            nats = sum(len(tokenizer.token_bytes(token)) for token in ids[1:]) * math.log(256)
            size = scored_bytes(tokenizer, ids)
            scores.append(TextScore(document(text, language), nats, len(ids) - 1, size))
        assert [s.bits_per_byte for s in summarise(scores).values()] == pytest.approx([8, 8])


def test_groups_weigh_documents_by_their_length() -> None:
    """By language, by domain, by anything; the order and the seed settle all."""
    sizes = {"a": (30.0, 10, 20), "b": (10.0, 10, 60), "c": (8.0, 4, 10)}
    scores = [
        TextScore(document("", "en" if name < "c" else "fr", name), *size)
        for name, size in sizes.items()
    ]
    found = summarise(scores)
    assert list(found) == ["en", "fr"]
    assert found["en"].loss == 2
    assert found["en"].perplexity == pytest.approx(math.exp(2))
    assert found["en"].bits_per_byte == pytest.approx(40 / 80 / math.log(2))
    assert found["en"].low < found["en"].bits_per_byte < found["en"].high
    assert found["fr"].low == found["fr"].high == pytest.approx(bits_per_byte(8, 10))
    assert summarise(scores, by=lambda each: each.domain)["stories"].documents == 3
    assert summarise(scores) == found
    many = [TextScore(document(""), float(i), 1, 1) for i in range(20)]
    assert summarise(many, seed=1) != summarise(many)


def test_what_cannot_be_scored(model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    one = [document("a")]
    for options, complaint in (
        ({"stride": 0}, "stride = 0: must be from 1 to 48"),
        ({"stride": 9, "context": 8}, "stride = 9: must be from 1 to 8"),
        ({"context": 49}, "context = 49: must be from 1 to 48"),
    ):
        with pytest.raises(DataError, match=complaint):
            text_scores(model, tiny, one, **options)
    with pytest.raises(DataError, match="en = 1 documents: no text to score"):
        summarise(text_scores(model, tiny, one))
    [empty] = text_scores(model, tiny, [document("")])
    assert (empty.nats, empty.tokens, empty.bytes) == (0, 0, 0)
    assert summarise([empty, TextScore(one[0], 2.0, 1, 4)])["en"].documents == 1
