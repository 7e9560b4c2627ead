"""MinHash signatures and locality-sensitive hashing: finding similar texts without
comparing all pairs.

A text is the set of its shingles, runs of a few words. Under a random permutation of
all shingles, two sets have the same smallest one with probability |A and B| / |A or B|,
their Jaccard similarity. A signature holds that minimum for many permutations; cut into
bands, it makes candidates of two texts that agree in all rows of at least one band.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int64, UInt32, UInt64
from numpy.typing import ArrayLike

from slm2_minimal.config import ConfigError
from slm2_minimal.data.reading import batches
from slm2_minimal.prepare.words import FACTOR, mix, ngrams, words_of

BLOCK = 1 << 16  # shingles permuted at a time: they and their images fit a core's cache
EMPTY = np.iinfo(np.uint32).max  # throughout the signature of a text without words
NOBODY = 0  # the band key of a text without words, which is similar to none


@dataclass(frozen=True)
class LSH:
    """How signatures are made and cut: `bands` of `rows` permutations each, over
    shingles of `shingle` words.
    """

    bands: int
    rows: int
    shingle: int = 5
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers that are not positive."""
        for name, least in (("bands", 1), ("rows", 1), ("shingle", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least {least}")

    @property
    def permutations(self) -> int:
        """The length of a signature."""
        return self.bands * self.rows

    def probability(self, jaccard: ArrayLike) -> Float[np.ndarray, "..."]:
        """The chance to become candidates, by similarity: 1 - (1 - s^rows)^bands."""
        return 1 - (1 - np.asarray(jaccard, dtype=np.float64) ** self.rows) ** self.bands

    @classmethod
    def for_similarity(
        cls, similarity: float, permutations: int = 128, shingle: int = 5, seed: int = 1
    ) -> Self:
        """At most `permutations` in the bands and rows whose S-curve comes closest to a
        step at `similarity`: the smallest area of candidates below and misses above.

        Raises ConfigError for what cannot be.
        """
        if not 0 < similarity < 1:
            raise ConfigError(
                f"similarity = {similarity}: must lie between 0 and 1, both excluded; equal texts"
                " are found by exact_keys"
            )
        if permutations < 1:
            raise ConfigError(f"permutations = {permutations}: must be at least 1; 128 is usual")

        grid = (np.arange(1000) + 0.5) / 1000
        step = grid > similarity
        choices = [
            cls(bands, rows, shingle, seed)
            for rows in range(1, permutations + 1)
            for bands in range(1, permutations // rows + 1)
        ]
        return min(choices, key=lambda lsh: np.abs(lsh.probability(grid) - step).sum())


def signatures(texts: Iterable[str], lsh: LSH) -> UInt32[np.ndarray, "n permutations"]:
    """The MinHash signature of each text; of a text without words, EMPTY throughout.

    A permutation takes the upper half x of a shingle's hash to (a x + b) mod 2**32 with
    odd a, which is one to one. Memory beside the result is that of the shingles of one
    of `batches`, or of the longest text: about 65 bytes per word.
    """
    columns = [np.empty((lsh.permutations, 0), dtype=np.uint32)]
    columns += [batch_signatures(batch, lsh) for batch in batches(texts)]
    return np.concatenate(columns, axis=1).T


def batch_signatures(texts: list[str], lsh: LSH) -> UInt32[np.ndarray, "permutations n"]:
    hashes, starts, _ = ngrams(words_of(texts), lsh.shingle, whole_short=True)
    shingles = (hashes >> np.uint64(32)).astype(np.uint32)
    factors, shifts = permutation_numbers(lsh)
    result = np.full((lsh.permutations, len(texts)), EMPTY, dtype=np.uint32)
    filled = np.flatnonzero(np.diff(starts))
    starts = starts[filled]

    image = np.empty(min(BLOCK, len(shingles)), dtype=np.uint32)
    for begin in range(0, len(shingles), BLOCK):
        block = shingles[begin : begin + BLOCK]
        image = image[: len(block)]

        # The texts with shingles here; the first may have begun in an earlier block.
        first = np.searchsorted(starts, begin, side="right") - 1
        last = np.searchsorted(starts, begin + len(block))
        owners = filled[first:last]
        own_starts = np.maximum(starts[first:last] - begin, 0)

        for minima, factor, shift in zip(result, factors, shifts, strict=True):
            np.multiply(block, factor, out=image)
            np.add(image, shift, out=image)
            block_minima = np.minimum.reduceat(image, own_starts)
            minima[owners] = np.minimum(minima[owners], block_minima)
    return result


def permutation_numbers(
    lsh: LSH,
) -> tuple[UInt32[np.ndarray, " permutations"], UInt32[np.ndarray, " permutations"]]:
    """The odd factors and the shifts of the permutations.

    They come from the seed alone: the same on every machine, under every NumPy.
    """
    count = np.uint64(2 * lsh.permutations)
    counter = np.arange(1, count + 1, dtype=np.uint64) + count * np.uint64(lsh.seed)
    numbers = (mix(counter) >> np.uint64(32)).astype(np.uint32)
    factors, shifts = numbers.reshape(2, -1)
    return factors | np.uint32(1), shifts


def band_keys(
    signatures: UInt32[np.ndarray, "n permutations"], lsh: LSH
) -> UInt64[np.ndarray, "bands n"]:
    """One number for each band of each signature, equal where all the band's rows are.

    It is NOBODY for texts without words. Two different bands share a key about once in
    2**64 pairs.
    """
    keys = np.ones((lsh.bands, len(signatures)), dtype=np.uint64)
    for band, key in enumerate(keys):
        for row in range(band * lsh.rows, (band + 1) * lsh.rows):
            key *= np.uint64(FACTOR)
            key += signatures[:, row]
        mix(key)
    np.maximum(keys, NOBODY + 1, out=keys)
    keys[:, (signatures == EMPTY).all(axis=1)] = NOBODY
    return keys


def candidate_pairs(keys: UInt64[np.ndarray, "bands n"]) -> Int64[np.ndarray, "m 2"]:
    """All pairs i < j of texts that share a key in some band, each once, in order.

    A group of g texts gives g (g - 1) / 2.
    """
    n = keys.shape[1]
    codes = [np.empty(0, dtype=np.int64)]
    for key in keys:
        order, heads = groups(key)
        sizes = np.diff(heads, append=len(order))

        # Each member is the left one of a pair with every later member of its group.
        later = (heads + sizes).repeat(sizes) - np.arange(len(order)) - 1
        left = np.arange(len(order)).repeat(later)
        right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(later) - later, later)
        i, j = order[left], order[right]
        codes.append(np.minimum(i, j) * n + np.maximum(i, j))
    return np.stack(np.divmod(np.unique(np.concatenate(codes)), n), axis=1)


def groups(
    key: UInt64[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " members"], Int64[np.ndarray, " groups"]]:
    """The texts that share a key, group after group; where each group begins."""
    order = np.argsort(key)
    ordered = key[order]
    like_the_one_before = np.zeros(len(key), dtype=bool)
    like_the_one_before[1:] = (ordered[1:] == ordered[:-1]) & (ordered[1:] != NOBODY)
    member = like_the_one_before.copy()
    member[:-1] |= like_the_one_before[1:]
    return order[member], np.flatnonzero(~like_the_one_before[member])
