"""Signatures against a plain MinHash, estimates against counted Jaccard similarities,
candidates against the S-curve and brute force.
"""

import itertools
import tracemalloc
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.config import ConfigError
from slm2_minimal.prepare import minhash as module
from slm2_minimal.prepare.minhash import LSH, NOBODY, band_keys, candidate_pairs, signatures
from slm2_minimal.prepare.words import FACTOR, ngrams, words_of
from slm2_minimal.text.corpus import load_corpus

VOCABULARY = [f"w{i}" for i in range(5000)]


def random_texts(rng: np.random.Generator, count: int, words: int) -> list[list[str]]:
    return [[VOCABULARY[i] for i in rng.integers(0, len(VOCABULARY), words)] for _ in range(count)]


def shingle_set(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def jaccard(left: str, right: str, n: int = 5) -> float:
    a, b = shingle_set(left, n), shingle_set(right, n)
    return len(a & b) / len(a | b)


def near_pair(rng: np.random.Generator, words: int, new: int) -> tuple[str, str]:
    """Two texts, the second with its last `new` words replaced."""
    one, other = random_texts(rng, 2, words)
    return " ".join(one), " ".join(one[: words - new] + other[words - new :])


def plain_mix(number: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 1):
        number = (number ^ (number >> 33)) * factor % 2**64
    return number


def plain_signature(text: str, lsh: LSH) -> list[int]:
    """The same family of permutations, one number at a time."""
    hashes, _, _ = ngrams(words_of([text]), lsh.shingle, whole_short=True)
    shingles = [int(h) >> 32 for h in hashes]
    count = lsh.permutations
    numbers = [plain_mix(1 + i + 2 * count * lsh.seed) >> 32 for i in range(2 * count)]
    return [
        min(((factor | 1) * x + shift) % 2**32 for x in shingles) if shingles else 2**32 - 1
        for factor, shift in zip(numbers[:count], numbers[count:], strict=True)
    ]


def plain_pairs(keys: list[list[int]]) -> list[list[int]]:
    n = len(keys[0])
    return [
        [i, j]
        for i in range(n)
        for j in range(i + 1, n)
        if any(key[i] == key[j] != NOBODY for key in keys)
    ]


@given(
    texts=st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "...", "d"]), max_size=12).map(" ".join),
        max_size=7,
    ),
    lsh=st.builds(
        LSH,
        bands=st.integers(1, 4),
        rows=st.integers(1, 4),
        shingle=st.integers(1, 4),
        seed=st.integers(0, 9),
    ),
    batch=st.integers(1, 40),
    block=st.integers(1, 9),
)
@example(texts=[], lsh=LSH(2, 2), batch=1, block=1)
@example(texts=["", "a b c", "", ". .", "a"], lsh=LSH(2, 2, shingle=2), batch=100, block=1)
@settings(max_examples=150)
def test_signatures_are_plain_minhash_however_the_work_is_cut(
    texts: list[str], lsh: LSH, batch: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm2_minimal.data.reading.BATCH", batch)
        patch.setattr(module, "BLOCK", block)
        result = signatures(iter(texts), lsh)
    assert (result.dtype, result.shape) == (np.uint32, (len(texts), lsh.permutations))
    assert result.tolist() == [plain_signature(text, lsh) for text in texts]


def test_one_enormous_text_works_in_memory_that_grows_with_its_words_only() -> None:
    rng = np.random.default_rng(0)
    text = " ".join(random_texts(rng, 1, 300_000)[0])
    lsh = LSH(4, 2)
    signatures(["warm up the tables of characters"], lsh)
    tracemalloc.start()
    result = signatures(["a short one", text, "and another"], lsh)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 300_000 + 2 * len(text) + 4_000_000
    assert result[1].tolist() == plain_signature(text, lsh)


@pytest.mark.parametrize(("words", "pairs"), [(24, 60), (200, 30), (3000, 4)])
def test_estimates_fit_counted_similarities_within_their_statistical_error(
    words: int, pairs: int
) -> None:
    rng = np.random.default_rng(words)
    lsh = LSH(bands=256, rows=8)
    errors = []
    for _ in range(pairs):
        left, right = near_pair(rng, words, int(rng.integers(0, words)))
        truth = jaccard(left, right)
        both = signatures([left, right], lsh)
        spread = max(truth * (1 - truth) / lsh.permutations, 1e-12) ** 0.5
        errors.append((float((both[0] == both[1]).mean()) - truth) / spread)
    assert np.abs(errors).max() < 5
    assert abs(np.mean(errors)) < 4 / pairs**0.5
    assert np.std(errors) < 1.5


def test_every_shingle_is_equally_often_the_smallest() -> None:
    """Min-wise independence on one set: a family that favours some places of the number
    line fails here.
    """
    text = " ".join(VOCABULARY[:50])
    smallest = signatures([text], LSH(2000, 2, shingle=1))[0]
    assert len(set(smallest.tolist())) == 4000, (
        "minima under different permutations are unrelated numbers"
    )
    each = signatures([word for word in VOCABULARY[:50]], LSH(2000, 2, shingle=1))
    wins = np.bincount(each.argmin(axis=0), minlength=50)
    assert abs(wins - 80).max() < 5 * 80**0.5
    assert ((wins - 80) ** 2 / 80).sum() < 49 + 5 * (2 * 49) ** 0.5


def test_the_s_curve_by_hand() -> None:
    assert LSH(14, 8).permutations == 112
    assert LSH(14, 8).probability(0.8) == pytest.approx(0.92355, abs=1e-5)
    assert LSH(14, 8).probability([0.0, 1.0]).tolist() == [0, 1]
    assert LSH(1, 1).probability(0.3) == pytest.approx(0.3)
    assert LSH(2, 1).probability(0.5) == pytest.approx(0.75)
    assert LSH(1, 2).probability(0.5) == pytest.approx(0.25)


def exact_area(similarity: Fraction, bands: int, rows: int) -> Fraction:
    """Candidates below the similarity plus misses above it, integrated term by term: (1
    - s^r)^b = sum C(b, k) (-1)^k s^(rk).
    """

    def missed_until(s: Fraction) -> Fraction:
        return sum(
            (
                comb(bands, k) * (-1) ** k * s ** (rows * k + 1) / (rows * k + 1)
                for k in range(bands + 1)
            ),
            Fraction(0),
        )

    return (
        similarity - missed_until(similarity) + missed_until(Fraction(1)) - missed_until(similarity)
    )


@pytest.mark.parametrize("percent", [20, 50, 70, 80, 93])
@pytest.mark.parametrize("permutations", [1, 7, 24])
def test_the_chosen_bands_and_rows_have_the_smallest_area_of_error(
    percent: int, permutations: int
) -> None:
    target = Fraction(percent, 100)
    lsh = LSH.for_similarity(percent / 100, permutations)
    shapes = [
        (b, r)
        for b in range(1, permutations + 1)
        for r in range(1, permutations + 1)
        if b * r <= permutations
    ]
    best = min(exact_area(target, *shape) for shape in shapes)
    assert lsh.permutations <= permutations
    assert float(exact_area(target, lsh.bands, lsh.rows) - best) < 1e-4


def test_a_higher_similarity_asks_for_longer_bands() -> None:
    rows = [LSH.for_similarity(s / 20).rows for s in range(4, 20)]
    assert rows == sorted(rows)
    assert (LSH.for_similarity(0.8).shingle, LSH.for_similarity(0.8, shingle=3, seed=4)) == (
        5,
        LSH(9, 13, 3, 4),
    )


@pytest.mark.parametrize("similarity", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_similarity_outside_0_and_1_is_refused(similarity: float) -> None:
    with pytest.raises(ConfigError, match=r"similarity = .*: must lie between 0 and 1"):
        LSH.for_similarity(similarity)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="permutations = 0: must be at least 1"):
        LSH.for_similarity(0.8, 0)
    for name in ("bands", "rows", "shingle"):
        with pytest.raises(ConfigError, match=f"{name} = 0: must be at least 1"):
            LSH(**{"bands": 2, "rows": 2, name: 0})
    with pytest.raises(ConfigError, match="seed = -1: must be at least 0"):
        LSH(2, 2, seed=-1)


def test_band_keys_are_a_chain_over_the_rows_of_a_band() -> None:
    signature = np.asarray([[1, 2, 3, 4], [1, 2, 3, 5], [9, 2, 3, 4]], dtype=np.uint32)
    keys = band_keys(signature, LSH(bands=2, rows=2))
    assert (keys.dtype, keys.shape) == (np.uint64, (2, 3))

    def chain(*rows: int) -> int:
        value = 1
        for row in rows:
            value = (value * FACTOR + row) % 2**64
        return plain_mix(value)

    assert keys.tolist() == [
        [chain(1, 2), chain(1, 2), chain(9, 2)],
        [chain(3, 4), chain(3, 5), chain(3, 4)],
    ]


@given(
    keys=st.integers(0, 12).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=1, max_size=4
        )
    )
)
@example(keys=[[]])
@example(keys=[[0, 0, 0], [7, 7, 7]])
@example(keys=[[2**64 - 1, 1, 2**64 - 1]])
@settings(max_examples=200)
def test_candidate_pairs_are_all_pairs_with_a_common_key(keys: list[list[int]]) -> None:
    pairs = candidate_pairs(np.asarray(keys, dtype=np.uint64))
    assert (pairs.dtype, pairs.ndim, pairs.shape[1]) == (np.int64, 2, 2)
    assert pairs.tolist() == plain_pairs(keys)


def test_texts_without_words_are_candidates_of_nothing() -> None:
    lsh = LSH(8, 1)
    keys = band_keys(signatures(["", "a", "...", " \n", "b", "a!"], lsh), lsh)
    assert (keys == NOBODY).all(axis=0).tolist() == [True, False, True, True, False, False]
    assert (keys != NOBODY).all(axis=0).tolist() == [False, True, False, False, True, True]
    assert candidate_pairs(keys).tolist() == [[1, 5]]


def test_short_texts_are_compared_whole() -> None:
    lsh = LSH(8, 1)
    keys = band_keys(signatures(["one two", "One, two!", "two one", "one two three"], lsh), lsh)
    assert candidate_pairs(keys).tolist() == [[0, 1]]


def test_the_rate_of_candidates_follows_the_s_curve() -> None:
    """Pairs of known similarity, 400 in each bin of it: candidates are as many as the
    curve says, within five deviations.
    """
    rng = np.random.default_rng(2)
    lsh = LSH(14, 8)
    pairs = [near_pair(rng, 80, new) for new in (2, 6, 9, 13, 18, 24) for _ in range(400)]
    keys = band_keys(signatures(itertools.chain.from_iterable(pairs), lsh), lsh)
    found = (keys[:, 0::2] == keys[:, 1::2]).any(axis=0)
    likely = lsh.probability([jaccard(*pair) for pair in pairs])
    for begin in range(0, len(pairs), 400):
        bin_ = slice(begin, begin + 400)
        spread = (likely[bin_] * (1 - likely[bin_])).sum() ** 0.5
        assert abs(found[bin_].sum() - likely[bin_].sum()) < 5 * spread + 1
    assert likely.min() < 0.1 < 0.99 < likely.max()


def test_recall_and_precision_against_brute_force() -> None:
    rng = np.random.default_rng(3)
    lsh = LSH(14, 8)
    texts = [" ".join(words) for words in random_texts(rng, 100, 80)]
    texts += [text for new in (1, 3, 30, 40) for _ in range(50) for text in near_pair(rng, 80, new)]
    order = rng.permutation(len(texts))
    texts = [texts[i] for i in order]
    sets = [shingle_set(text, 5) for text in texts]
    similarity = {
        (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        for i, j in itertools.combinations(range(len(texts)), 2)
    }
    alike = {pair for pair, s in similarity.items() if s >= 0.8}
    found = set(map(tuple, candidate_pairs(band_keys(signatures(texts, lsh), lsh)).tolist()))
    assert len(alike) >= 100
    assert len(found & alike) / len(alike) > 0.97
    assert len(found & alike) / len(found) > 0.9
    expected = lsh.probability(list(similarity.values())).sum()
    assert abs(len(found) - expected) < 5 * expected**0.5


def test_the_corpus_has_the_same_candidates_in_any_order() -> None:
    lsh = LSH.for_similarity(0.5)
    texts = [document.text for document in load_corpus(languages=["en", "nl"])]
    texts += texts[:3]
    forward = candidate_pairs(band_keys(signatures(texts, lsh), lsh))
    backward = candidate_pairs(band_keys(signatures(texts[::-1], lsh), lsh))
    assert sorted(map(tuple, (len(texts) - 1 - backward[:, ::-1]).tolist())) == sorted(
        map(tuple, forward.tolist())
    )
    n = len(texts)
    assert {(0, n - 3), (1, n - 2), (2, n - 1)} <= set(map(tuple, forward.tolist()))
