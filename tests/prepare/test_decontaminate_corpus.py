"""Decontamination of the embedded corpus: plants are found, and nothing else is."""

import re
import unicodedata

import numpy as np

from slm2_minimal.prepare.decontaminate import BenchmarkIndex
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from tests.prepare.slow_decontamination import plain_words, run


def test_nothing_of_the_corpus_is_hit_but_what_was_planted() -> None:
    """Held-out documents are the benchmark: translations and code share no 13 words
    with the rest.
    """
    documents = load_corpus()
    held_out = [document.text for document in documents if is_validation(document.id, 10)]
    training = [document.text for document in documents if not is_validation(document.id, 10)]
    assert min(len(held_out), len(training)) > 100
    index = BenchmarkIndex.build({"held out": held_out})
    assert len(index.hashes) > 30_000
    left, report = run(training, index)
    assert report.hit == len(report.ngrams) == 0
    assert all(pieces[0] is text for pieces, text in zip(left, training, strict=True))

    planted = {}
    for number, text in enumerate(held_out):
        target = number * len(training) // len(held_out)
        words = plain_words(text)
        if len(words) > 60:
            passage = re.sub(
                r"\s+",
                "\n",
                unicodedata.normalize("NFC", text)[words[20][1] : words[40][2]].lower(),
            )
            at = training[target].find(" ", number % 50 * 5)
            training[target] = (
                f"{training[target][:at]} fence {passage} fence {training[target][at:]}"
            )
            planted[target] = passage
    assert len(planted) > 100
    found = index.hits(training)
    assert [number for number, hits in enumerate(found) if hits] == sorted(planted)
    for target, passage in planted.items():
        assert [training[target][hit.begin : hit.end] for hit in found[target]] == [passage]


def test_indexed_texts_are_hit_from_their_first_word_to_their_last() -> None:
    texts = [document.text for document in load_corpus(languages=["de", "code"])]
    words = [plain_words(text) for text in texts]
    found = BenchmarkIndex.build({"itself": texts}).hits(texts)
    for hits, place in zip(found, words, strict=True):
        assert [(hit.begin, hit.end) for hit in hits] == (
            [(place[0][1], place[-1][2])] if len(place) >= 13 else []
        )


def test_few_ngrams_of_clean_text_are_searched_for() -> None:
    index = BenchmarkIndex.build(
        {"all": [document.text for document in load_corpus(languages=["en", "fr"])]}
    )
    others = np.random.default_rng(0).integers(0, 1 << 64, 100_000, dtype=np.uint64)
    assert 1 / 33 < len(index.probable(others)) / len(others) < 1 / 15.5
    assert len(index.probable(index.hashes)) == len(index.hashes) > 20_000
