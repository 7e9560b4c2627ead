"""Finding evaluation text in training text, and taking it out.

A place is contaminated where `n` words in a row also stand in an evaluation set, case,
punctuation and white space aside. An index holds the hashes of all n-grams of the
evaluation sets; documents are held against it in batches. The defaults are those of
GPT-3 (arXiv 2005.14165, appendix C), but no n-gram is excused for being frequent.
"""

import io
import itertools
import json
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.data.reading import batches
from slm2_minimal.files import whole_file
from slm2_minimal.prepare.words import ngrams, words_of
from slm2_minimal.text.documents import nfc

NGRAM = 13  # words; shorter runs are shared by chance and in phrases that everybody uses
WINDOW = 200  # characters cut on either side: the question's rest, or its answer, is there
MIN_PIECE = 200  # characters; a shorter piece has lost its context
MAX_PIECES = 10  # a document cut into more is more of a benchmark than of anything else
EXAMPLES = 5  # shared places that a report shows for each benchmark
EXAMPLE_CHARACTERS = 300  # and how much of each
# Bits of the filter per n-gram, at least: at most 1 in 16 of the n-grams that are not
# in the index is searched for.
FILTER_BITS = 16


@dataclass(frozen=True)
class Benchmark:
    """One evaluation set in an index."""

    name: str
    texts: int
    too_short: int  # texts of fewer than n words: they have no n-gram and cannot be found


@dataclass(frozen=True)
class Hit:
    """A place that evaluation texts share: n-grams that overlap or adjoin, as one."""

    begin: int  # characters [begin, end) of the text's NFC form
    end: int
    benchmarks: tuple[str, ...]  # all that hold an n-gram of it, in the order of the index
    ngrams: tuple[int, ...]  # its n-grams, as positions in the index


@dataclass(frozen=True)
class BenchmarkIndex:
    """The n-grams of evaluation sets by their hashes, sorted, each once.

    Bit b % 64 of members[b // 64, g] says whether n-gram g is in benchmark b. Two
    different n-grams share a hash about once in 2**64 pairs. Memory per million of
    them: 8 MB, 8 MB more per 64 benchmarks, and a filter of 2 to 4 MB at the first use.
    """

    hashes: UInt64[np.ndarray, " G"]
    members: UInt64[np.ndarray, "W G"]
    benchmarks: tuple[Benchmark, ...]
    n: int

    @classmethod
    def build(cls, benchmarks: Mapping[str, Iterable[str]], n: int = NGRAM) -> Self:
        """Index the texts of every benchmark by its name, read once, a batch at a time.

        Raises DataError for an `n` below 1, no benchmark, or one without texts.
        """
        if not isinstance(n, int) or n < 1:
            raise DataError(f"n = {n!r}: must be a positive number of words; {NGRAM} is usual")
        if not benchmarks:
            remedy = "name at least one evaluation set"
            raise DataError(f"benchmarks = {{}}: nothing to look for; {remedy}")
        read = [_read(name, texts, n) for name, texts in benchmarks.items()]
        hashes = np.unique(np.concatenate([its_hashes for _, its_hashes in read]))
        members = np.zeros((-(-len(read) // 64), len(hashes)), dtype=np.uint64)
        for b, (_, its_hashes) in enumerate(read):
            members[b // 64, np.searchsorted(hashes, its_hashes)] |= np.uint64(1 << b % 64)
        return cls(hashes, members, tuple(benchmark for benchmark, _ in read), n)

    def of(self, b: int) -> Bool[np.ndarray, " G"]:
        """Which n-grams are in benchmark number `b`."""
        return self.members[b // 64] & np.uint64(1 << b % 64) != 0

    def hits(self, texts: Sequence[str]) -> list[list[Hit]]:
        """The contaminated places of each text, in order.

        No n-gram reaches from one text into the next. Memory beside the texts is about
        75 bytes per word; give long corpora in batches.
        """
        words = words_of(texts)
        hashes, starts, first = ngrams(words, self.n)
        at = self.probable(hashes)
        positions = np.minimum(np.searchsorted(self.hashes, hashes[at]), len(self.hashes) - 1)
        known = self.hashes[positions] == hashes[at]
        at, positions = at[known], positions[known]

        # N-grams of one text that overlap or adjoin are one hit.
        owners = np.searchsorted(starts, at, side="right") - 1
        begins = words.begins[first[at]]
        ends = words.ends[first[at] + self.n - 1]
        apart = np.flatnonzero((owners[1:] != owners[:-1]) | (begins[1:] > ends[:-1])) + 1
        result: list[list[Hit]] = [[] for _ in texts]
        edges = [0, *apart.tolist(), len(at)] if len(at) else []
        for left, right in itertools.pairwise(edges):
            shared = positions[left:right]
            begin, end = int(begins[left]), int(ends[right - 1])
            hit = Hit(begin, end, self.names_of(shared), tuple(shared.tolist()))
            result[owners[left]].append(hit)
        return result

    def names_of(self, positions: Int64[np.ndarray, " hits"]) -> tuple[str, ...]:
        """The benchmarks that hold any of these n-grams."""
        union = np.bitwise_or.reduce(self.members[:, positions], axis=1).tolist()
        return tuple(
            benchmark.name
            for b, benchmark in enumerate(self.benchmarks)
            if union[b // 64] >> b % 64 & 1
        )

    def probable(self, hashes: UInt64[np.ndarray, " N"]) -> Int64[np.ndarray, " probable"]:
        """Where `hashes` holds all that are in the index and few others.

        A search costs much more than a look at the filter.
        """
        byte, bit = self._places(hashes)
        return np.flatnonzero(self._filter.take(byte) >> bit & np.uint8(1))

    @cached_property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - (FILTER_BITS * max(len(self.hashes), 1) - 1).bit_length())

    @cached_property
    def _filter(self) -> UInt8[np.ndarray, " bytes"]:
        """A bit for every value of a hash's leading bits: whether there is one."""
        byte, bit = self._places(self.hashes)
        flags = np.zeros(1 << (61 - int(self._shift)), dtype=np.uint8)
        np.bitwise_or.at(flags, byte, np.uint8(1) << bit)
        return flags

    def _places(
        self, hashes: UInt64[np.ndarray, " N"]
    ) -> tuple[Int64[np.ndarray, " N"], UInt8[np.ndarray, " N"]]:
        """The byte of the filter that each hash belongs to, and the bit in it."""
        leading = hashes >> self._shift
        byte = (leading >> np.uint64(3)).astype(np.int64)
        return byte, (leading & np.uint64(7)).astype(np.uint8)

    def save(self, path: Path) -> None:
        """Write the index, whole or not at all: uint64 [1 + W, G] of hashes and members
        as .npy, the bytes of a JSON text (n, benchmarks) as .npy, the CRC-32 of both.
        """
        about = {"n": self.n, "benchmarks": [vars(benchmark) for benchmark in self.benchmarks]}
        content = io.BytesIO()
        np.save(content, np.concatenate([self.hashes[None], self.members]))
        np.save(content, np.frombuffer(json.dumps(about).encode(), dtype=np.uint8))
        with whole_file(path) as file:
            file.write(content.getbuffer())
            file.write(zlib.crc32(content.getbuffer()).to_bytes(4, "little"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The index that `save` wrote, mapped into memory: processes share one copy.

        Raises DataError for a file that is missing, damaged or of another kind.
        """
        try:
            content = np.memmap(path, mode="r")
            if zlib.crc32(content[:-4].data) != int.from_bytes(content[-4:].tobytes(), "little"):
                raise ValueError("its checksum does not fit")
            numbers = np.load(path, mmap_mode="r", allow_pickle=False)
            with path.open("rb") as file:
                file.seek(numbers.offset + numbers.nbytes)
                about = json.loads(np.load(file, allow_pickle=False).tobytes())
        except (OSError, EOFError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            complaint = f"cannot be read ({reason}); build and save it again"
            raise DataError(f"index = {str(path)!r}: {complaint}") from None
        benchmarks = tuple(Benchmark(**benchmark) for benchmark in about["benchmarks"])
        rows = np.asarray(numbers)  # still mapped
        return cls(rows[0], rows[1:], benchmarks, about["n"])


def _read(name: str, texts: Iterable[str], n: int) -> tuple[Benchmark, UInt64[np.ndarray, " G"]]:
    """One benchmark, and the hashes of its n-grams, each once."""
    if isinstance(texts, str):  # a string is an iterable of strings too, of its letters
        complaint = "must be texts, not one text; write [text]"
        raise DataError(f"benchmarks.{name} = {texts[:20]!r}: {complaint}")
    count = 0
    too_short = 0
    parts = [np.empty(0, dtype=np.uint64)]
    for batch in batches(texts):
        hashes, starts, _ = ngrams(words_of(batch), n)
        parts.append(np.unique(hashes))
        count += len(batch)
        too_short += int((np.diff(starts) == 0).sum())
    if not count:
        complaint = "nothing to look for; check its path, or leave it out"
        raise DataError(f"benchmarks.{name} = 0 texts: {complaint}")
    return Benchmark(name, count, too_short), np.unique(np.concatenate(parts))


@dataclass
class Contamination:
    """What `clean` met and did. Documents are numbered from 0 in their order."""

    documents: int = 0
    dropped: int = 0  # hit, and nothing of it stays
    cut: int = 0  # hit, and a part stays
    characters: int = 0  # in all texts, as they came
    removed_characters: int = 0  # in the NFC form of the hit documents
    hit_documents: Counter[str] = field(default_factory=Counter)  # by benchmark
    ngrams: set[int] = field(default_factory=set)  # those met, as positions in the index
    # By benchmark: document, shared words as they stand in it.
    examples: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    @property
    def hit(self) -> int:
        """How many documents share anything with a benchmark."""
        return self.dropped + self.cut

    def add(self, text: str, hits: list[Hit], pieces: list[str]) -> None:
        """Count one contaminated document, given in NFC, and what stays of it."""
        if pieces:
            self.cut += 1
        else:
            self.dropped += 1
        self.removed_characters += len(text) - sum(map(len, pieces))
        self.hit_documents.update({name for hit in hits for name in hit.benchmarks})
        for hit in hits:
            self.ngrams.update(hit.ngrams)
            words = text[hit.begin : hit.end][:EXAMPLE_CHARACTERS]
            for name in hit.benchmarks:
                self._show(name, self.documents, words)

    def merge(self, later: "Contamination") -> None:
        """Add what was met in the documents after this one's, with the same index."""
        for name, shown in later.examples.items():
            for document, words in shown:
                self._show(name, self.documents + document, words)
        for count in ("documents", "dropped", "cut", "characters", "removed_characters"):
            setattr(self, count, getattr(self, count) + getattr(later, count))
        self.hit_documents += later.hit_documents
        self.ngrams |= later.ngrams

    def _show(self, name: str, document: int, words: str) -> None:
        shown = self.examples.setdefault(name, [])
        if len(shown) < EXAMPLES:
            shown.append((document, words))


def clean(
    texts: Sequence[str],
    index: BenchmarkIndex,
    policy: Literal["drop", "cut"],
    *,
    window: int = WINDOW,
    min_piece: int = MIN_PIECE,
    max_pieces: int = MAX_PIECES,
) -> tuple[list[list[str]], Contamination]:
    """What stays of each text, and what was met. Give corpora in batches.

    A text without hits stays as it is: `[text]`. With the policy "drop", nothing stays
    of one with hits. With "cut", its NFC form loses every hit with `window` characters
    on either side, and more up to a word's edge. Of more than `max_pieces` pieces
    nothing stays, else those of `min_piece` characters or more.

    Raises ConfigError for an unknown policy or a negative window.
    """
    if policy not in ("drop", "cut"):
        raise ConfigError(f"policy = {policy!r}: must be 'drop' or 'cut'")
    if window < 0:
        raise ConfigError(f"window = {window}: must be 0 or more characters; {WINDOW} is usual")

    cleaned: list[list[str]] = []
    contamination = Contamination()
    for text, hits in zip(texts, index.hits(texts), strict=True):
        pieces = [text]
        if hits:
            normal = nfc(text)
            pieces = _cut(normal, hits, window) if policy == "cut" else []
            if len(pieces) > max_pieces:
                pieces = []

            # what is too short to be read alone goes
            pieces = [piece for piece in pieces if len(piece) >= min_piece]
            contamination.add(normal, hits, pieces)
        contamination.documents += 1
        contamination.characters += len(text)
        cleaned.append(pieces)
    return cleaned, contamination


def _cut(text: str, hits: list[Hit], window: int) -> list[str]:
    """What is left between the hits and their windows, empty pieces aside."""
    pieces = []
    begin = 0
    for hit in hits:
        pieces.append(text[begin : _outside_words(text, hit.begin - window, -1)])
        begin = _outside_words(text, hit.end + window, 1)
    pieces.append(text[begin:])
    return [piece for piece in pieces if piece]


def _outside_words(text: str, place: int, step: int) -> int:
    """The first place from `place` on, in steps of 1 or -1, outside all words."""
    place = min(max(place, 0), len(text))
    while 0 < place < len(text) and _in_word(text[place - 1]) and _in_word(text[place]):
        place += step
    return place


def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"
