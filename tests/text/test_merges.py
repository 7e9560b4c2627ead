"""Merges from ranks, and bytes as characters."""

import pytest

from slm2_minimal.text.arcade import Arcade100k
from slm2_minimal.text.bpe import train_bpe
from slm2_minimal.text.merges import BYTE_CHARS, from_chars, merges, to_chars


def test_merges_by_hand() -> None:
    """`abcd` is `ab` and `cd`, because `bc` comes after both; `xyz` is never made."""
    ranks = {char: i for i, char in enumerate("abcdxyz")}
    for token in ("cd", "ab", "bc", "abcd", "xyz"):
        ranks[token] = len(ranks)
    assert merges(ranks) == [("c", "d"), ("a", "b"), ("b", "c"), ("ab", "cd")]


def test_training_makes_the_same_merges() -> None:
    ranks = train_bpe("the cat sat on the mat; the rat ate the oats " * 3, 40, r"\s*\S+")
    found = merges(ranks)
    assert [left + right for left, right in found] == list(ranks)[256:]


@pytest.mark.slow
def test_every_token_of_cl100k_has_one(arcade: Arcade100k) -> None:
    ranks = {arcade.token_bytes(i): i for i in range(100_256)}
    found = merges(ranks)
    assert [ranks[left + right] for left, right in found] == list(range(256, 100_256))


def test_bytes_as_characters() -> None:
    assert len(set(BYTE_CHARS.values())) == 256
    assert all(char.isprintable() and not char.isspace() for char in BYTE_CHARS.values())
    assert to_chars(" é\n".encode()) == "ĠÃ©Ċ"
    assert from_chars(to_chars(bytes(range(256)))) == bytes(range(256))
    with pytest.raises(KeyError):
        from_chars("漢")
