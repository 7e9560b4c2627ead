"""Our near-duplicate search beside datasketch's and rensa's, from strings to candidate
pairs, on one thread, interleaved in one process.

    pip install "slm2-minimal[bench]"
    python benchmarks/dedup.py [--documents 20000] [--rounds 7] [--million 4]

All sides make shingles of 5 words, signatures of 128 numbers, and 16 bands of 8; the
others get the cheapest words there are (lower case, cut at white space), which on these
texts are ours. Every fifth text is one of a planted pair of known similarity; the truth
is the Jaccard similarity of all pairs that share a shingle, counted. Times are medians
over the rounds, by the clock and of the processor; on a machine that others use, the
second says more. Then the memory of clustering is measured, in a process of its own
(Linux), on made-up keys of some million documents.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

os.environ.update(
    {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "RAYON")}
)  # read on import

import numpy as np

from slm2_minimal.prepare.duplicates import find_duplicates
from slm2_minimal.prepare.minhash import LSH, band_keys, candidate_pairs, signatures
from slm2_minimal.prepare.words import ngrams, words_of
from slm2_minimal.text.corpus import load_corpus

LSH_16_8 = LSH(bands=16, rows=8)
SIMILAR = 0.8
WORDS = 205  # about 1 kB
UNIT = 500_000  # documents in a file of made-up keys
Pairs = set[tuple[int, int]]


def documents(count: int) -> list[str]:
    """Texts of words drawn by their frequency in the embedded English corpus, a fifth
    of them in pairs that differ in their last words.
    """
    rng = np.random.default_rng(0)
    frequency = Counter(
        word
        for document in load_corpus(languages=["en"])
        for word in document.text.lower().split()
        if word.isalpha()
    )
    words, weights = np.asarray(list(frequency)), np.asarray(list(frequency.values()))
    drawn = rng.choice(words, size=(count, WORDS), p=weights / weights.sum())
    for original in range(0, count - 5, 10):
        shared = rng.uniform(0.5, 1.0)
        # As many shingles are new in each of the two.
        new = round((WORDS - 4) * (1 - shared) / (1 + shared))
        drawn[original + 5, : WORDS - new] = drawn[original, : WORDS - new]
    return [" ".join(text) for text in drawn]


def shingles(text: str) -> Iterator[str]:
    """The fastest way found in plain Python."""
    words = text.lower().split()
    return map(" ".join, zip(words, words[1:], words[2:], words[3:], words[4:], strict=False))


def similar_pairs(texts: list[str]) -> Pairs:
    """All pairs of a Jaccard similarity of at least SIMILAR, counted."""
    sets = [set(shingles(text)) for text in texts]
    owners = defaultdict(list)
    for i, members in enumerate(sets):
        for shingle in members:
            owners[shingle].append(i)
    common = Counter(pair for group in owners.values() for pair in combinations(group, 2))
    return {
        (i, j)
        for (i, j), both in common.items()
        if both >= SIMILAR * (len(sets[i]) + len(sets[j]) - both)
    }


def ours(texts: list[str]) -> Pairs:
    """The package's way."""
    keys = band_keys(signatures(texts, LSH_16_8), LSH_16_8)
    return set(map(tuple, candidate_pairs(keys).tolist()))


def datasketch_pairs(texts: list[str]) -> Pairs:
    """Sketches in bulk with the fastest hash of the standard library in place of SHA-1,
    then query and insert one after another.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=LSH_16_8.permutations, params=(LSH_16_8.bands, LSH_16_8.rows))
    tokens = (list(map(str.encode, shingles(text))) for text in texts)
    pairs = set()
    for j, sketch in enumerate(
        MinHash.generator(tokens, num_perm=LSH_16_8.permutations, hashfunc=zlib.crc32)
    ):
        pairs.update((i, j) for i in index.query(sketch))
        index.insert(j, sketch, check_duplication=False)
    return pairs


def rensa_pairs(texts: list[str]) -> Pairs:
    """Sketches, insertion and queries each in one native call. Only sketches that are
    objects can be asked for their candidates.
    """
    import rensa

    index = rensa.RMinHashLSH(SIMILAR, LSH_16_8.permutations, LSH_16_8.bands)
    sketches = rensa.RMinHash.from_token_sets(
        map(list, map(shingles, texts)), LSH_16_8.permutations, 1
    )
    index.insert_many(sketches)
    return {
        (i, j)
        for j, candidates in enumerate(index.query_all(sketches))
        for i in candidates
        if i < j
    }


def rensa_flags(texts: list[str]) -> None:
    """rensa's shortest way: signatures as one matrix, and of each text only whether it
    has candidates.
    """
    import rensa

    index = rensa.RMinHashLSH(SIMILAR, LSH_16_8.permutations, LSH_16_8.bands)
    matrix = rensa.RMinHash.digest_matrix_from_token_sets(
        map(list, map(shingles, texts)), LSH_16_8.permutations, 1
    )
    index.insert_matrix_and_query_duplicate_flags(matrix)


def our_shingles(texts: list[str]) -> None:
    """Words and shingles alone, in batches as `signatures` makes them."""
    for begin in range(0, len(texts), 250):
        ngrams(words_of(texts[begin : begin + 250]), LSH_16_8.shingle, whole_short=True)


def rensa_on_our_shingles(texts: list[str]) -> None:
    """rensa's signatures of the numbers that our shingles are."""
    import rensa

    for begin in range(0, len(texts), 250):
        hashes, starts, _ = ngrams(
            words_of(texts[begin : begin + 250]), LSH_16_8.shingle, whole_short=True
        )
        rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, starts.astype(np.uint64), LSH_16_8.permutations, 1
        )


def measure(
    sides: dict[str, Callable[[list[str]], object]], texts: list[str], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median seconds of each side, by the clock and of the processor; one run of each
    in turn, after one that is not counted.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for counted in range(rounds + 1):
        for name, side in sides.items():
            clock, processor = time.perf_counter(), time.process_time()
            side(texts)
            if counted:
                seconds[name].append((time.perf_counter() - clock, time.process_time() - processor))
    medians = {}
    for name, times in seconds.items():
        clock, processor = (statistics.median(column) for column in zip(*times, strict=True))
        medians[name] = (clock, processor)
    return medians


def write_made_up_keys(folder: Path, million: int, share: float) -> None:
    """Random keys, but in each band a `share` of the documents is in one of the groups
    of about four that share their key there.
    """
    rng = np.random.default_rng(0)
    total, linked = million * 1_000_000, int(UNIT * share)
    for unit in range(total // UNIT):
        keys = rng.integers(1, 1 << 63, (4 + LSH_16_8.bands, UNIT), dtype=np.uint64)
        keys[4:, :linked] = rng.integers(
            1, max(2, int(total * share) // 4), linked, dtype=np.uint64
        )
        np.save(folder / f"{unit:03d}.npy", keys)


def cluster(folder: Path) -> None:
    """Find duplicates in a folder of keys; print seconds, and how many bytes per
    document the resident size rose.
    """
    paths = sorted(folder.glob("*.npy"))
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, of the imports
    before = resident_peak()
    start = time.perf_counter()
    report = find_duplicates(paths, LSH_16_8, "longest", sources=["web"] * len(paths)).report
    seconds = time.perf_counter() - start
    print(
        seconds,
        (resident_peak() - before) / report.documents,
        report.near_removed / report.documents,
    )


def resident_peak() -> int:
    """The highest resident size of this process since the last reset, in bytes
    (Linux).
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def compare(texts: list[str], rounds: int) -> None:
    """Print times of all sides, and the share of similar pairs that each finds."""
    similar = similar_pairs(texts)
    size = sum(map(len, texts)) / len(texts)
    print(
        f"{len(texts):,} texts of {size:,.0f} bytes, {len(similar):,} pairs of similarity"
        f" {SIMILAR} and more; {rounds} rounds"
    )
    finders = {"slm2_minimal": ours, "rensa": rensa_pairs, "datasketch": datasketch_pairs}
    parts = {
        "rensa, flags, no pairs": rensa_flags,
        "our shingles alone": our_shingles,
        "our shingles, rensa sketch": rensa_on_our_shingles,
        "our shingles, our sketch": lambda texts: signatures(texts, LSH_16_8),
    }
    seconds = measure({**finders, **parts}, texts, rounds)
    print(
        f"{'':<28}{'seconds':>8} {'CPU s':>6} {'documents/CPU s':>16} {'pairs':>7} {'recall':>7}"
        f" {'precision':>10}"
    )
    for name, (clock, processor) in seconds.items():
        line = f"{name:<28}{clock:>8.3f} {processor:>6.3f} {len(texts) / processor:>16,.0f}"
        if name in finders:
            found = finders[name](texts)
            right = len(found & similar)
            line += f" {len(found):>7,} {right / len(similar):>7.3f} {right / len(found):>10.3f}"
        print(line)


def measure_memory(million: int, share: float) -> None:
    """Print what clustering takes, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_made_up_keys(Path(folder), million, share)
        command = [sys.executable, __file__, "--cluster", folder]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, memory, removed = map(float, told.split())
    print(
        f"clustering {million} million documents, {removed:.0%} of them removed:"
        f" {seconds:.1f} s, {memory:.1f} MB per million documents"
    )


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--million", type=int, default=4)
    parser.add_argument("--cluster", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cluster:
        cluster(options.cluster)
        return
    compare(documents(options.documents), options.rounds)
    for share in (0.1, 1.0):
        measure_memory(options.million, share)


if __name__ == "__main__":
    main()
