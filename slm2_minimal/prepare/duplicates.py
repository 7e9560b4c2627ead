"""Which documents repeat others, exactly or nearly, over any number of files (report
section 2).

Each unit of documents is turned once into a small file of keys, a column per question:
which text, which id, which band of its MinHash signature? The columns of all units are
then sorted one at a time. Documents that share a key are linked, linked documents make
clusters, and of each cluster one document stays. Similarity is not checked again: a
cluster may join A to C through B, and some candidates are less similar than was meant
(`LSH.probability` says how many).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.data.reading import batches
from slm2_minimal.files import write_array
from slm2_minimal.prepare.minhash import LSH, band_keys, groups, signatures
from slm2_minimal.text.documents import nfc

# The columns of a file of keys: 128 bits of the text's digest, 64 of the id's, the
# text's length in UTF-8 bytes, one per band.
TEXT, TEXT_REST, ID, BYTES, BANDS = range(5)
EXAMPLES = 5  # how many clusters are shown
EXAMPLE_MEMBERS = 10  # and how many documents of each

Location = tuple[int, int]  # a document: its unit, and its row in the unit


@dataclass(frozen=True)
class DuplicatesReport:
    """What was found, in numbers that JSON can hold."""

    documents: int
    exact_removed: int  # of every text all copies but one
    near_removed: int  # the other removed documents
    cluster_sizes: dict[int, int]  # documents in a cluster, 2 or more -> number of such clusters
    examples: list[list[dict[str, str]]]  # of the largest clusters; filled by `prepare`
    removed_by_source: dict[str, float]  # share of the source's documents
    repeated_ids: int  # documents whose id another one before them has; counted, not removed


@dataclass(frozen=True)
class Duplicates:
    """Which documents of each unit are to be removed, and what was found."""

    removed: list[Bool[np.ndarray, " documents"]]
    largest: list[list[Location]]  # some members of the largest clusters, the survivor first
    report: DuplicatesReport


def exact_keys(texts: Iterable[str]) -> UInt64[np.ndarray, "n 2"]:
    """128 bits of each text's digest.

    It is that of the NFC form, with every run of white space as one blank and none at
    either end.
    """
    plain = (" ".join(nfc(text).split()) for text in texts)
    return text_digests(plain, 16).reshape(-1, 2)


def text_digests(texts: Iterable[str], size: int) -> UInt64[np.ndarray, " numbers"]:
    digests = (hashlib.blake2b(_utf8(text), digest_size=size).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def write_keys(path: Path, documents: Iterable[tuple[str, str]], lsh: LSH | None) -> None:
    """Write the keys of one unit's documents, each given as (id, text).

    The file is a .npy array uint64 [4 + bands, documents], without bands where `lsh` is
    None and only exact duplicates are asked for.
    """
    columns = BANDS + (lsh.bands if lsh else 0)
    parts = [np.empty((columns, 0), dtype=np.uint64)]
    for batch in batches(documents, itemgetter(1)):
        ids, texts = zip(*batch, strict=True)
        part = np.empty((columns, len(batch)), dtype=np.uint64)
        part[[TEXT, TEXT_REST]] = exact_keys(texts).T
        part[ID] = text_digests(ids, 8)
        part[BYTES] = [len(_utf8(text)) for text in texts]
        if lsh:
            part[BANDS:] = band_keys(signatures(texts, lsh), lsh)
        parts.append(part)
    write_array(path, np.concatenate(parts, axis=1))


class _Keys:
    """The columns of all units, end to end, read from disk when asked for."""

    def __init__(self, paths: Sequence[Path], lsh: LSH | None) -> None:
        self.paths = paths
        self.columns = BANDS + (lsh.bands if lsh else 0)
        self.starts = np.cumsum([0, *(self._open(path).shape[1] for path in paths)])

    def _open(self, path: Path) -> UInt64[np.ndarray, "columns n"]:
        try:
            keys = np.lib.format.open_memmap(path, mode="r")
            if keys.dtype == np.uint64 and keys.ndim == 2 and keys.shape[0] == self.columns:
                return keys
            expected = f"uint64 [{self.columns}, documents]"
            complaint = f"{keys.dtype} {list(keys.shape)}, must be {expected}"
        except Exception as error:  # for a damaged header NumPy raises whatever its parser meets
            complaint = f"cannot be read ({error})"
        remedy = "write them again with write_keys and the same LSH"
        raise DataError(f"keys = {str(path)!r}: {complaint}; {remedy}")

    def __getitem__(self, column: int) -> UInt64[np.ndarray, " n"]:
        """One column, copied file by file, so that each file is closed."""
        parts = [np.array(self._open(path)[column]) for path in self.paths]
        return np.concatenate([np.empty(0, dtype=np.uint64), *parts])

    def locate(self, documents: Int64[np.ndarray, " m"]) -> list[Location]:
        """Where documents are that are numbered through all units."""
        units = np.searchsorted(self.starts, documents, side="right") - 1
        rows = documents - self.starts[units]
        return list(zip(units.tolist(), rows.tolist(), strict=True))


def find_duplicates(
    paths: Sequence[Path],
    lsh: LSH | None,
    keep: Literal["first", "longest"] = "first",
    *,
    sources: Sequence[str],
) -> Duplicates:
    """Find the duplicates among all units, whose keys `write_keys` wrote to `paths`.

    Of every cluster stays the first document, in the order of units and rows, or the
    longest text (of equally long ones the first). `sources` names each unit's source,
    for the report. Texts without words are compared exactly only. Memory is about 40 MB
    per million documents, 75 MB where most of them are duplicates.

    Raises:
        ConfigError: an unknown `keep`, or not one source per unit.
        DataError: a file that cannot be read, or that holds no keys of this many bands.
    """
    if keep not in ("first", "longest"):
        raise ConfigError(f"keep = {keep!r}: must be 'first' or 'longest'")
    if len(sources) != len(paths):
        complaint = f"must be one for each of the {len(paths)} units"
        raise ConfigError(f"sources = {len(sources)} of them: {complaint}")

    # Copies share both halves of their digest, near duplicates a band
    keys = _Keys(paths, lsh)
    label = np.arange(keys.starts[-1])
    left, right = _neighbours(keys[TEXT])
    rest = keys[TEXT_REST]
    same = rest[left] == rest[right]
    link(label, left[same], right[same])
    exact_removed = int((label != np.arange(len(label))).sum())
    for band in range(lsh.bands if lsh else 0):
        link(label, *_neighbours(keys[BANDS + band]))

    # Of each cluster all go but the one that stands first.
    members, sizes = _clusters(label, keys[BYTES] if keep == "longest" else None)
    heads = np.cumsum(sizes) - sizes
    removed = np.zeros(len(label), dtype=bool)
    removed[members] = True
    removed[members[heads]] = False
    units = np.split(removed, keys.starts[1:-1])[: len(paths)]

    largest = []
    for cluster in np.argsort(-sizes, kind="stable")[:EXAMPLES]:
        shown = min(sizes[cluster], EXAMPLE_MEMBERS)
        largest.append(keys.locate(members[heads[cluster] : heads[cluster] + shown]))
    ids = np.sort(keys[ID])
    report = DuplicatesReport(
        documents=len(label),
        exact_removed=exact_removed,
        near_removed=int(removed.sum()) - exact_removed,
        cluster_sizes=dict(sorted(Counter(sizes.tolist()).items())),
        examples=[],
        removed_by_source=_shares(units, sources),
        repeated_ids=int((ids[1:] == ids[:-1]).sum()),
    )
    return Duplicates(units, largest, report)


def _neighbours(
    key: UInt64[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Pairs of documents with the same key, each with the next of its group."""
    order, heads = groups(key)
    follows = np.ones(len(order), dtype=bool)
    follows[heads] = False
    follower = np.flatnonzero(follows)
    return order[follower - 1], order[follower]


def link(
    label: Int64[np.ndarray, " n"], left: Int64[np.ndarray, " m"], right: Int64[np.ndarray, " m"]
) -> None:
    """Join the clusters of left[k] and right[k] for all k.

    `label`, changed in place, holds the first document of each one's cluster. In every
    round each cluster that has a neighbour with a smaller label hooks its first
    document onto one of them; then all pointers are followed to their ends. Labels only
    get smaller, so no circle can arise, and chains shorten by a constant factor.
    """
    while True:
        a, b = label[left], label[right]
        apart = a != b
        if not apart.any():
            return
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        label[np.maximum(a, b)] = np.minimum(a, b)
        while not np.array_equal(followed := label[label], label):
            label[:] = followed


def _clusters(
    label: Int64[np.ndarray, " n"], lengths: UInt64[np.ndarray, " n"] | None
) -> tuple[Int64[np.ndarray, " members"], Int64[np.ndarray, " clusters"]]:
    """Documents of the clusters of two or more, cluster after cluster, and their sizes.

    The one that stays comes first: the first, or with `lengths` the longest.
    """
    member = label != np.arange(len(label))
    member[label[member]] = True
    members = np.flatnonzero(member)
    ranks = np.zeros(len(members), dtype=np.uint64) if lengths is None else ~lengths[members]
    members = members[np.lexsort((members, ranks, label[members]))]
    return members, np.unique(label[members], return_counts=True)[1]


def _shares(
    units: Sequence[Bool[np.ndarray, " documents"]], sources: Sequence[str]
) -> dict[str, float]:
    """The share of removed documents in each source; 0 in one without documents."""
    removed, documents = Counter[str](), Counter[str]()
    for unit, source in zip(units, sources, strict=True):
        removed[source] += int(unit.sum())
        documents[source] += len(unit)
    return {source: removed[source] / max(documents[source], 1) for source in documents}
