"""Decontamination by sets of word tuples and marks for every character: slow, and too
plain to be wrong in the same way.
"""

import re
import unicodedata
from typing import Any

from slm2_minimal.prepare.decontaminate import BenchmarkIndex, Contamination, clean
from slm2_minimal.prepare.minhash import batches

QUESTION = "Which of these rivers flows from south to north: Nile, Rhine, Po, Ebro?"
SAME_WORDS = (
    "which  OF\nthese, (rivers) -- flows; from SOUTH to\r\n\r\nnorth -- NILE/Rhine... po\tEbRo"
)
Span = tuple[int, int, tuple[str, ...], int]  # begin, end, benchmarks, different n-grams


def plain_words(text: str) -> list[tuple[str, int, int]]:
    return [
        (word[0].casefold(), *word.span())
        for word in re.finditer("京|[^\\W_京]+", unicodedata.normalize("NFC", text))
    ]


def plain_ngrams(text: str, n: int) -> list[tuple[tuple[str, ...], int, int]]:
    words = plain_words(text)
    runs = [words[i : i + n] for i in range(len(words) - n + 1)]
    return [(tuple(word for word, _, _ in run), run[0][1], run[-1][2]) for run in runs]


def plain_hits(text: str, benchmarks: dict[str, list[str]], n: int) -> list[Span]:
    """All n-grams of the text against sets of tuples; then places that share a
    character or an edge become one.
    """
    sets = {
        name: {gram for one in texts for gram, _, _ in plain_ngrams(one, n)}
        for name, texts in benchmarks.items()
    }
    merged: list[tuple[int, int, set[str], set[tuple[str, ...]]]] = []
    for gram, begin, end in plain_ngrams(text, n):
        names = {name for name, known in sets.items() if gram in known}
        if names and merged and begin <= merged[-1][1]:
            first, _, others, grams = merged.pop()
            merged.append((first, end, others | names, grams | {gram}))
        elif names:
            merged.append((begin, end, names, {gram}))
    return [
        (begin, end, tuple(name for name in benchmarks if name in names), len(grams))
        for begin, end, names, grams in merged
    ]


def plain_cut(text: str, spans: list[Span], window: int) -> list[str]:
    """Mark what goes, let the marks spread through letters and digits, and read off
    what has no mark.
    """
    gone = [
        any(begin - window <= i < end + window for begin, end, _, _ in spans)
        for i in range(len(text))
    ]
    for i in [*range(1, len(text)), *range(len(text) - 1, 0, -1)]:
        if text[i - 1].isalnum() and text[i].isalnum() and gone[i - 1] != gone[i]:
            gone[i - 1] = gone[i] = True
    marks = "".join("x" if mark else "." for mark in gone)
    return [text[part.start() : part.end()] for part in re.finditer(r"\.+", marks)]


def run(
    texts: list[str], index: BenchmarkIndex, policy: Any = "cut", **how: int
) -> tuple[list[list[str]], Contamination]:
    """In batches, as `prepare` does it."""
    cleaned, total = list[list[str]](), Contamination()
    for batch in batches(texts):
        pieces, met = clean(batch, index, policy, **how)
        cleaned += pieces
        total.merge(met)
    return cleaned, total
