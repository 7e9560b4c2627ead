"""The teaching BPE: a case worked by hand, and tiktoken's ids on the same ranks and
pattern.
"""

import random

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from slm2_minimal.text.arcade import ARCADE_PATTERN, Arcade100k
from slm2_minimal.text.bpe import Ranks, bpe_merge, encode_bpe, train_bpe
from slm2_minimal.text.corpus import load_corpus

EVERYTHING = r"(?s).+"
BYTES = {bytes([byte]): byte for byte in range(256)}

ALPHABET = " \n\r\t\xa0\u2003aabtshelloréßſ'’0127٣½漢가.,!?<|>_(\u0301😀"
texts = st.one_of(st.text(alphabet=ALPHABET, max_size=60), st.text(max_size=40))


# By hand: "aaabdaaabac". aa comes first (4 times). Then a-b and aa-a both come twice:
# the bytes "a" are before "aa", so ab. Then aa-ab (twice). Of what is left every pair
# comes once, and (a, c) is the first as bytes.
HAND = [b"aa", b"ab", b"aaab", b"ac"]


def test_training_by_hand() -> None:
    ranks = train_bpe("aaabdaaabac", 4, EVERYTHING)
    assert ranks == BYTES | {token: 256 + i for i, token in enumerate(HAND)}
    assert bpe_merge(b"aaabdaaabac", ranks) == [b"aaab", b"d", b"aaab", b"ac"]
    assert encode_bpe("aaabdaaabac", ranks, EVERYTHING) == [258, ord("d"), 258, 259]


def test_merging_by_hand() -> None:
    ranks = BYTES | {b"bc": 256, b"ab": 257, b"abc": 258, b"aa": 259}
    assert bpe_merge(b"abc", ranks) == [b"abc"]  # bc, of lower rank, comes before ab; then a-bc
    assert bpe_merge(b"abab", ranks) == [b"ab", b"ab"]
    assert bpe_merge(b"aaa", ranks) == [b"aa", b"a"]  # among equals the leftmost
    assert bpe_merge(b"", ranks) == []
    assert bpe_merge(b"z", ranks) == [b"z"]


def test_no_merges_are_the_bytes() -> None:
    assert train_bpe("any text", 0, EVERYTHING) == BYTES
    assert encode_bpe("é", BYTES, EVERYTHING) == [0xC3, 0xA9]


def test_a_piece_counts_as_often_as_it_comes() -> None:
    assert list(train_bpe("zy zy ab", 1, r"\S+"))[256:] == [b"zy"]


def test_training_ends_when_no_pair_is_left() -> None:
    assert len(train_bpe("abcd", 1000, EVERYTHING)) == 256 + 3
    assert train_bpe("", 10, EVERYTHING) == BYTES


def test_fewer_merges_are_the_first_of_more() -> None:
    text = load_corpus(languages=["en"], limit=1)[0].text
    many = list(train_bpe(text, 60, ARCADE_PATTERN).items())
    assert list(train_bpe(text, 20, ARCADE_PATTERN).items()) == many[:276]
    assert [rank for _, rank in many] == list(range(316))


def test_merges_never_cross_a_cut() -> None:
    ranks = train_bpe("ab ab ab ab 12 12 12", 100, ARCADE_PATTERN)
    assert {token for token in ranks if len(token) > 1} == {b"ab", b" ab"}


def test_the_order_of_words_does_not_matter() -> None:
    words = load_corpus(languages=["de"], limit=1)[0].text.split()
    shuffled = random.Random(0).sample(words, len(words))
    assert train_bpe(" ".join(words), 80, r"\S+") == train_bpe(" ".join(shuffled), 80, r"\S+")


@pytest.fixture(scope="module")
def trained() -> tuple[Ranks, tiktoken.Encoding]:
    text = "\n".join(
        document.text
        for language in ("en", "de", "fr")
        for document in load_corpus(languages=[language], limit=2)
    )
    ranks = train_bpe(text, 250, ARCADE_PATTERN)
    return ranks, tiktoken.Encoding(
        "trained", pat_str=ARCADE_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )


@given(text=texts)
@settings(max_examples=200)
def test_trained_ranks_in_tiktoken(trained: tuple[Ranks, tiktoken.Encoding], text: str) -> None:
    ranks, encoding = trained
    assert encode_bpe(text, ranks, ARCADE_PATTERN) == encoding.encode_ordinary(text)


def test_trained_ranks_in_tiktoken_on_prose(trained: tuple[Ranks, tiktoken.Encoding]) -> None:
    ranks, encoding = trained
    assert len(ranks) == 506
    for document in load_corpus(languages=["en", "it", "code"])[::4]:
        ids = encode_bpe(document.text, ranks, ARCADE_PATTERN)
        assert ids == encoding.encode_ordinary(document.text)
        assert encoding.decode(ids) == document.text


@pytest.fixture(scope="module")
def cl100k(arcade: Arcade100k) -> Ranks:
    return {arcade.token_bytes(i): i for i in range(100_256)}


@given(text=texts)
@settings(max_examples=200)
def test_the_ranks_of_cl100k(arcade: Arcade100k, cl100k: Ranks, text: str) -> None:
    assert encode_bpe(text, cl100k, arcade.pattern) == arcade.encoding.encode_ordinary(text)


@pytest.mark.parametrize("language", ["en", "de", "es", "fr", "it", "nl", "pt", "code", "math"])
def test_the_ranks_of_cl100k_on_prose(arcade: Arcade100k, cl100k: Ranks, language: str) -> None:
    for document in load_corpus(languages=[language], limit=3):
        assert encode_bpe(document.text, cl100k, arcade.pattern) == arcade.encode(document.text)
