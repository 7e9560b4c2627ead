"""The words of many texts at once, as 64-bit numbers: what deduplication and
decontamination compare.

A word is a run of letters, marks and digits, its case and compatibility forms folded;
everything else separates. In scripts that are written without spaces (Chinese,
Japanese, Thai, ...) every character is a word of its own. The number of a word depends
on its characters alone: not on its place, the batch, the machine or Python's hash seed.
Only a character newer than the Unicode version of the Python in use is taken for a
separator.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from slm2_minimal.text.documents import nfc

BLOCK = 1 << 16  # characters hashed at a time: every temporary array fits a core's cache
# Both odd, so that they have inverses mod 2**64: BASE for characters, FACTOR for words.
BASE = 0x9E3779B97F4A7C15
FACTOR = 0xD6E8FEB86659FD93
SEPARATOR, LETTER, ALONE = 0, 1, 2  # the kinds of characters
# Blocks of scripts without spaces: Thai and Lao; Myanmar; Khmer; Tai Le and New Tai
# Lue; Lanna; ideographic marks; kana; phonetic extensions of kana; ideographs,
# extension A and unified; Myanmar and Tai Viet; compatibility ideographs; half-width
# kana; kana supplements; ideographs of planes 2 and 3.
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF),
    (0x1A20, 0x1AAF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF), (0xAA60, 0xAADF),
    (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip


@dataclass(frozen=True)
class Words:
    """The words of some texts, end to end: text i has [starts[i], starts[i + 1]).

    A word is characters [begins, ends) of the NFC form of its own text.
    """

    hashes: UInt64[np.ndarray, " W"]
    starts: Int64[np.ndarray, " documents_plus_1"]
    begins: Int64[np.ndarray, " W"]
    ends: Int64[np.ndarray, " W"]


def words_of(texts: Sequence[str]) -> Words:
    """All words of `texts`, each as a hash of its folded characters, and where it is.

    Two different words share a hash about once in 2**64 pairs. Memory is 24 bytes per
    word, 60 while it is made.
    """
    texts = [nfc(text) for text in texts]
    offsets = np.cumsum([0, *(len(text) + 1 for text in texts)], dtype=np.int64)
    parts = [_words_of_block(block, offset) for offset, block in _blocks("\n".join(texts))]
    hashes, begins, ends = (np.concatenate(columns) for columns in zip(*parts, strict=True))

    # From places in the batch to places in each text.
    starts = np.searchsorted(begins, offsets)
    shift = np.repeat(offsets[:-1], np.diff(starts))
    begins -= shift
    ends -= shift
    return Words(hashes, starts, begins, ends)


def ngrams(
    words: Words, n: int, *, whole_short: bool = False
) -> tuple[
    UInt64[np.ndarray, " G"], Int64[np.ndarray, " documents_plus_1"], Int64[np.ndarray, " G"]
]:
    """The n-grams of each text: hashes, where a text's begin, the first word of each.

    A text of fewer than `n` words has none; with `whole_short` it has one, made of all
    its words, unless it has no word at all.
    """
    lengths = np.diff(words.starts)
    short = lengths < n
    counts = np.where(short, whole_short & (lengths > 0), lengths - n + 1)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    first = np.arange(starts[-1]) + np.repeat(words.starts[:-1] - starts[:-1], counts)

    # A chain from every word on. It begins with 1, not 0: a shorter chain must not
    # equal a longer one that begins with zeros.
    ahead = np.concatenate([words.hashes, np.zeros(n - 1, dtype=np.uint64)])
    chained = np.ones(len(words.hashes), dtype=np.uint64)
    for i in range(n):
        chained *= np.uint64(FACTOR)
        chained += ahead[i : i + len(chained)]

    # Short texts: the chain ends with the text.
    if whole_short:
        some = short & (lengths > 0)
        begin, length = words.starts[:-1][some], lengths[some]
        whole = np.ones(len(begin), dtype=np.uint64)
        for i in range(n - 1):
            whole = np.where(i < length, whole * np.uint64(FACTOR) + ahead[begin + i], whole)
        chained[begin] = whole
    return mix(chained[first]), starts, first


def mix(numbers: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Permute the 64-bit numbers, in place, so that every bit depends on every bit.

    This is the finaliser of MurmurHash3.
    """
    shifted = np.empty_like(numbers)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 1):
        np.right_shift(numbers, np.uint64(33), out=shifted)
        np.bitwise_xor(numbers, shifted, out=numbers)
        np.multiply(numbers, np.uint64(factor), out=numbers)
    return numbers


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """(offset, piece) of about BLOCK characters each; at least one.

    The cuts are before white space, which no word contains.
    """
    white = re.compile(r"\s")
    begin = 0
    while cut := white.search(text, begin + BLOCK):
        yield begin, text[begin : cut.start()]
        begin = cut.start()
    yield begin, text[begin:]


def _words_of_block(
    text: str, offset: int
) -> tuple[UInt64[np.ndarray, " W"], Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
    """Hashes, begins and ends of the words of a piece that stands at `offset`.

    The word of characters c[s] to c[e - 1] has the hash sum(value(c[i]) BASE^(i - s))
    mod 2**64, mixed: the difference of two prefix sums, divided by BASE^s.
    """
    kinds, values = _characters()
    utf32 = text.encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(utf32, dtype=np.uint32).astype(np.intp)

    # What stands on either side of each of the len(text) + 1 places between characters.
    kind = np.zeros(len(codes) + 2, dtype=np.uint8)
    kinds.take(codes, out=kind[1:-1])
    before, after = kind[:-1], kind[1:]
    edge = (before != after) | (after == ALONE)
    begins = np.flatnonzero(edge & (after != SEPARATOR))
    ends = np.flatnonzero(edge & (before != SEPARATOR))

    powers, inverses = _powers(1 << max(BLOCK, len(text)).bit_length())
    terms = values.take(codes)
    terms *= powers[: len(codes)]
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(terms, out=sums[1:])
    hashes = sums[ends] - sums[begins]
    hashes *= inverses[begins]
    return mix(hashes), begins + offset, ends + offset


@functools.cache
def _characters() -> tuple[UInt8[np.ndarray, " points"], UInt64[np.ndarray, " points"]]:
    """Of every code point its kind, and a random-looking value of what it folds to."""
    categories = map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))
    kinds = np.fromiter((category[0] in "LMN" for category in categories), dtype=np.uint8)
    folded = np.arange(len(kinds), dtype=np.uint64)
    for point in np.flatnonzero(kinds).tolist():
        folded[point] = ord(_fold(chr(point)))
    for low, high in WITHOUT_SPACES:
        kinds[low : high + 1] *= np.uint8(ALONE)
    return kinds, mix(folded + np.uint64(BASE))


def _fold(character: str) -> str:
    """One character for one: its NFKC form casefolded where that is a single character,
    else its lower case, else itself.
    """
    folded = unicodedata.normalize("NFKC", character).casefold()
    return next(form for form in (folded, character.lower(), character) if len(form) == 1)


@functools.lru_cache(maxsize=1)
def _powers(count: int) -> tuple[UInt64[np.ndarray, " count"], UInt64[np.ndarray, " count"]]:
    """BASE^i and BASE^-i mod 2**64 for i < count."""
    factors = np.full((2, count), [[BASE], [pow(BASE, -1, 1 << 64)]], dtype=np.uint64)
    factors[:, 0] = 1
    powers, inverses = np.cumprod(factors, axis=1)
    return powers, inverses
