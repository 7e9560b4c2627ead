"""Bits per byte by hand, and what they may not depend on."""

import math

import numpy as np
import pytest
import torch

from slm2_minimal.config import DataError
from slm2_minimal.evaluate.bits import (
    TextScore,
    bits_per_byte,
    ratio_interval,
    scored_bytes,
    summarise,
    text_scores,
    windows,
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
def test_each_window_scores_what_none_before_it_did(
    model: StableLM2, tiny: SentencePieceTokenizer, context: int, stride: int | None
) -> None:
    text = TEXTS["de"] * 3
    ids = [*tiny.encode(text), tiny.eos_token_id]
    [score] = text_scores(model, tiny, [document(text)], stride, context)
    expected, first, begin = 0.0, 1, 0
    while first < len(ids):
        window = ids[begin : begin + context + 1]
        expected += direct(model, window, first - begin)
        first = begin + len(window)
        begin += stride or context
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert score.tokens == len(ids) - 1


def test_windows_by_hand() -> None:
    assert list(windows(8, 3, 3)) == [(0, 1, 3), (3, 4, 6), (6, 7, 7)]
    assert list(windows(8, 4, 2)) == [(0, 1, 4), (2, 5, 6), (4, 7, 7)]
    assert list(windows(3, 4, 4)) == [(0, 1, 2)]
    assert list(windows(1, 4, 4)) == []


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


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Normal documents: 95% of intervals, within what 200 trials allow; the seed is
    followed.
    """
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        sizes = rng.integers(50, 150, size=60)
        low, high = ratio_interval(sizes * 2.0 + rng.normal(0, 30, size=60), sizes, samples=500)
        held += low < 2 < high
    assert 0.88 < held / 200 < 0.99
    parts, sizes = [1.0, 2.0, 4.0], [1, 1, 1]
    assert ratio_interval(parts, sizes, seed=1) == ratio_interval(parts, sizes, seed=1)
    assert ratio_interval(parts, sizes, samples=20) != ratio_interval(parts, sizes, 3, 20)


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
