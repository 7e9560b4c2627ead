"""Words as numbers: the same words that plain string methods find one character at a
time, wherever and beside whatever they stand.
"""

import subprocess
import sys
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.prepare import words as module
from slm2_minimal.prepare.duplicates import exact_keys
from slm2_minimal.prepare.words import Words, ngrams, words_of
from slm2_minimal.text.corpus import load_corpus

MASK = (1 << 64) - 1
ALONE_NAMES = (
    "CJK UNIFIED IDEOGRAPH",
    "CJK COMPATIBILITY IDEOGRAPH",
    "HIRAGANA",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
)

# Any text, with the characters that are likely to go wrong often enough to meet one
# another.
tricky = st.sampled_from(
    [
        *" \n\tabAB09.,-'_ßẞſİıΣςσÅéÉ²½ªﬁ½Ⅳⅳ京都カｶﾞがก็ไ한국अमी🙂",
        *"\u0301\u00ad\u200d\u3000\ud800\U00020000\U0010ffff",
        "e\u0301",
        "Straße",
        "the",
    ]
)
any_text = st.one_of(st.text(max_size=40), st.lists(tricky, max_size=30).map("".join))


def fold(character: str) -> str:
    wide = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", character).casefold())
    if len(wide) == 1:
        return wide
    return character.lower() if len(character.lower()) == 1 else character


def stands_alone(character: str) -> bool:
    return unicodedata.name(character, "").startswith(ALONE_NAMES)


def plain_words(text: str) -> list[tuple[str, int, int]]:
    """(folded word, begin, end) by one walk over the characters of the NFC text."""
    found: list[tuple[str, int, int]] = []
    open_word = False
    for at, character in enumerate(unicodedata.normalize("NFC", text)):
        if unicodedata.category(character)[0] not in "LMN":
            open_word = False
        elif stands_alone(character) or not open_word:
            found.append((fold(character), at, at + 1))
            open_word = not stands_alone(character)
        else:
            word, begin, _ = found[-1]
            found[-1] = (word + fold(character), begin, at + 1)
    return found


def plain_mix(number: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 1):
        number = (number ^ (number >> 33)) * factor & MASK
    return number


def plain_hash(word: str) -> int:
    return plain_mix(
        sum(
            plain_mix(ord(c) + module.BASE & MASK) * pow(module.BASE, i, 1 << 64)
            for i, c in enumerate(word)
        )
        & MASK
    )


def plain_ngrams(hashes: Sequence[int], n: int, whole_short: bool) -> list[int]:
    def chain(run: Sequence[int]) -> int:
        value = 1
        for number in run:
            value = value * module.FACTOR + number & MASK
        return plain_mix(value)

    if 0 < len(hashes) < n and whole_short:
        return [chain(hashes)]
    return [chain(hashes[i : i + n]) for i in range(len(hashes) - n + 1)]


def of_text(words: Words, i: int) -> list[tuple[int, int, int]]:
    part = slice(words.starts[i], words.starts[i + 1])
    return list(
        zip(
            words.hashes[part].tolist(),
            words.begins[part].tolist(),
            words.ends[part].tolist(),
            strict=True,
        )
    )


@given(texts=st.lists(any_text, max_size=6))
@example(texts=[])
@example(texts=["", "", ""])
@example(texts=["a", "b", "", "c d"])
@example(texts=["日本語のテキスト", "ภาษาไทย", "e\u0301a"])
@settings(max_examples=300)
def test_words_are_those_of_a_walk_over_the_characters(texts: list[str]) -> None:
    words = words_of(texts)
    assert (words.hashes.dtype, words.starts.dtype, words.begins.dtype, words.ends.dtype) == (
        np.uint64,
        np.int64,
        np.int64,
        np.int64,
    )
    assert len(words.starts) == len(texts) + 1
    for i, text in enumerate(texts):
        assert of_text(words, i) == [
            (plain_hash(word), begin, end) for word, begin, end in plain_words(text)
        ]


def test_words_by_hand() -> None:
    text = "The naïve CAFÉ's 3rd café, e\u0301tude; ２nd: 東京 ไก่ x_y"
    expected = [
        "the",
        "naïve",
        "café",
        "s",
        "3rd",
        "café",
        "étude",
        "2nd",
        "東",
        "京",
        "ไ",
        "ก",
        "่",
        "x",
        "y",
    ]
    assert [word for word, _, _ in plain_words(text)] == expected
    words, normal = words_of([text]), unicodedata.normalize("NFC", text)
    spans = [normal[begin:end] for begin, end in zip(words.begins, words.ends, strict=True)]
    assert spans == [
        "The",
        "naïve",
        "CAFÉ",
        "s",
        "3rd",
        "café",
        "étude",
        "２nd",
        "東",
        "京",
        "ไ",
        "ก",
        "่",
        "x",
        "y",
    ]
    assert words.hashes[2] == words.hashes[5]
    assert len(set(words.hashes.tolist())) == len(set(expected))


@pytest.mark.parametrize(
    ("left", "right"),
    [("STRASSE", "straße"), ("ab", "ba"), ("aab", "aba"), ("a", "aa"), ("x1", "x2"), ("l", "1")],
)
def test_different_words_differ(left: str, right: str) -> None:
    assert words_of([left]).hashes[0] != words_of([right]).hashes[0]


@pytest.mark.parametrize(
    ("left", "right"),
    [("ΣΊΣΥΦΟΣ", "σίσυφος"), ("Ａ１", "a1"), ("ẞ", "ß"), ("Å", "A\u030a"), ("ЖУК", "жук")],
)
def test_forms_of_one_word_agree(left: str, right: str) -> None:
    assert words_of([left]).hashes.tolist() == words_of([right]).hashes.tolist()


def test_no_two_words_of_the_corpus_share_a_hash() -> None:
    texts = [document.text for document in load_corpus()]
    words = words_of(texts)
    plain = [word for text in texts for word, _, _ in plain_words(text)]
    assert len(words.hashes) == len(plain)
    pairs = set(zip(plain, words.hashes.tolist(), strict=True))
    assert len(pairs) == len(set(plain)) == len(set(words.hashes.tolist())) > 10_000


@given(texts=st.lists(any_text, min_size=1, max_size=6), data=st.data())
def test_a_text_gives_the_same_words_alone_as_in_a_batch(
    texts: list[str], data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, len(texts) - 1))
    assert of_text(words_of(texts), i) == of_text(words_of([texts[i]]), 0)


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_words_do_not_depend_on_where_the_text_is_cut_into_blocks(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [
        "",
        *(document.text for document in load_corpus(languages=["pt"], limit=3)),
        "",
        "a" * 200,
        "東京 " * 20,
        " " * 50,
    ]
    whole = words_of(texts)
    monkeypatch.setattr(module, "BLOCK", block)
    cut = words_of(texts)
    for name in ("hashes", "starts", "begins", "ends"):
        assert np.array_equal(getattr(whole, name), getattr(cut, name)), name


def test_one_word_longer_than_a_block_is_still_one_word() -> None:
    long = "ab" * module.BLOCK
    words = words_of([f"x {long} y", long.upper()])
    assert np.diff(words.starts).tolist() == [3, 1]
    assert words.hashes[1] == words.hashes[3]
    assert (words.begins[1], words.ends[1], words.begins[2]) == (2, 2 + len(long), 3 + len(long))


def test_numbers_are_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import runpy, sys; print(runpy.run_path(sys.argv[1])['words_of'](['Les idées"
        " claires']).hashes.tolist())"
    )
    command = [sys.executable, "-c", code, module.__file__]  # the file alone, by its path
    runs = [
        subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        for seed in "12"
    ]
    expected = [plain_hash(word) for word in ("les", "idées", "claires")]
    assert [run.stdout.strip() for run in runs] == [str(expected)] * 2


@given(
    lengths=st.lists(st.integers(0, 9), max_size=8),
    n=st.integers(1, 6),
    whole_short=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ngrams_are_those_of_plain_python_and_never_cross_an_edge(
    lengths: list[int], n: int, whole_short: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    texts = [" ".join("abc"[k] for k in rng.integers(0, 3, length)) for length in lengths]
    words = words_of(texts)
    hashes, starts, first = ngrams(words, n, whole_short=whole_short)
    assert (hashes.dtype, starts.dtype, first.dtype) == (np.uint64, np.int64, np.int64)
    assert len(starts) == len(texts) + 1
    for i in range(len(texts)):
        begin, end = int(words.starts[i]), int(words.starts[i + 1])
        expected = plain_ngrams(words.hashes[begin:end].tolist(), n, whole_short)
        part = slice(starts[i], starts[i + 1])
        assert hashes[part].tolist() == expected
        assert first[part].tolist() == list(range(begin, begin + len(expected)))


def test_ngrams_tell_order_and_length_apart() -> None:
    hashes, _, _ = ngrams(
        words_of(["a b c", "c b a", "a b", "a", "", "a b c"]), 3, whole_short=True
    )
    assert len(hashes) == 5
    assert len(set(hashes.tolist())) == 4
    assert hashes[0] == hashes[4]


def test_long_runs_of_marks_take_a_time_that_grows_with_their_length() -> None:
    """Python's own NFC is quadratic in them, and takes minutes for this text."""
    text = "a" + "\u0316\u0301" * 100_000
    other = "a" + "\u0316" * 100_000 + "\u0301" * 100_000
    began = time.monotonic()
    assert words_of([text]).hashes.tolist() == words_of([other]).hashes.tolist()
    assert exact_keys([text]).tolist() == exact_keys([other]).tolist()
    assert time.monotonic() - began < 10


def test_nfc_is_made_in_one_place_alone() -> None:
    package = Path(module.__file__).parents[1]
    made = [path.name for path in package.rglob("*.py") if 'normalize("NFC"' in path.read_text()]
    assert made == ["documents.py"]
