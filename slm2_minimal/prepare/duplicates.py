"""Which documents repeat others, exactly or nearly, over any number of files (report
section 2.1).

Each unit of documents (a shard, say) is turned once into a small file of keys, a column
per question: which text, which id, which band of its MinHash signature? The columns of
all units are then sorted one at a time. Documents that share a key are linked, linked
documents make clusters, and of each cluster one document stays. Similarity is not
checked again: a cluster may join A to C through B, and some candidates are less alike
than was meant (`LSH.probability` says how many).
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.files import whole_file
from slm2_minimal.prepare.minhash import LSH, band_keys, batches, groups, signatures

# The columns of a file of keys: 128 bits of the text's digest, 64 of the id's, the
# text's length in UTF-8 bytes, one per band.
TEXT, TEXT_REST, ID, BYTES, BANDS = range(5)
EXAMPLES, EXAMPLE_MEMBERS = (
    5,
    10,
)  # how many clusters a report shows, and how many documents of each


@dataclass(frozen=True)
class DedupReport:
    """What was found, in numbers that JSON can hold."""

    documents: int
    exact_removed: int  # of every text all copies but one
    near_removed: int  # the other removed documents
    cluster_sizes: dict[int, int]  # documents in a cluster, 2 or more -> number of such clusters
    examples: list[
        list[tuple[int, int]]
    ]  # the largest clusters as (unit, row in the unit), the document that stays first
    removed_by_source: dict[str, float]  # share of the source's documents
    repeated_ids: int  # documents whose id another one before them has; counted, not removed

    @property
    def clusters(self) -> int:
        """How many documents stay that had duplicates."""
        return sum(self.cluster_sizes.values())


@dataclass(frozen=True)
class Duplicates:
    """Which documents of each unit are to be removed, and the report."""

    removed: list[Bool[np.ndarray, " documents"]]
    report: DedupReport


def exact_keys(texts: Iterable[str]) -> UInt64[np.ndarray, "n 2"]:
    """128 bits of each text's digest, in NFC, with every run of white space as one
    blank and none at either end.
    """
    return _digests(
        (" ".join(unicodedata.normalize("NFC", text).split()) for text in texts), 16
    ).reshape(-1, 2)


def _digests(texts: Iterable[str], size: int) -> UInt64[np.ndarray, " numbers"]:
    joined = b"".join(hashlib.blake2b(_utf8(text), digest_size=size).digest() for text in texts)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def write_keys(path: str | Path, ids: Iterable[str], texts: Iterable[str], lsh: LSH | None) -> None:
    """Write the keys of one unit's documents to `path`, whole or not at all: a .npy
    file of uint64 [4 + bands, documents], without bands where `lsh` is None and only
    exact duplicates are asked for.

    Texts are taken a batch at a time; what is held is their keys, 8 bytes each. Raises
    DataError where ids and texts are not equally many.
    """
    columns = BANDS + (lsh.bands if lsh else 0)
    parts = [np.empty((columns, 0), dtype=np.uint64)]
    for batch in batches(texts):
        part = np.zeros((columns, len(batch)), dtype=np.uint64)
        part[[TEXT, TEXT_REST]] = exact_keys(batch).T
        part[BYTES] = [len(_utf8(text)) for text in batch]
        if lsh:
            part[BANDS:] = band_keys(signatures(batch, lsh), lsh)
        parts.append(part)
    keys, id_keys = np.concatenate(parts, axis=1), _digests(ids, 8)
    if len(id_keys) != keys.shape[1]:
        raise DataError(
            f"ids = {len(id_keys)} of them: must be one for each of the {keys.shape[1]} texts of"
            f" {str(path)!r}"
        )
    keys[ID] = id_keys
    with whole_file(path) as file:
        np.save(file, keys)


class _Keys:
    """The columns of all units, end to end, read from disk when asked for."""

    def __init__(self, paths: Sequence[str | Path], lsh: LSH | None) -> None:
        self.paths, self.columns = paths, BANDS + (lsh.bands if lsh else 0)
        self.starts = np.cumsum([0, *(self._open(path).shape[1] for path in paths)])

    def _open(self, path: str | Path) -> UInt64[np.ndarray, "columns n"]:
        try:
            keys = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # for a damaged header NumPy raises whatever its parser meets
            raise DataError(
                f"keys = {str(path)!r}: cannot be read ({error}); write them again with write_keys"
            ) from None
        if keys.dtype != np.uint64 or keys.ndim != 2 or keys.shape[0] != self.columns:
            raise DataError(
                f"keys = {str(path)!r}: {keys.dtype} {list(keys.shape)}, must be uint64"
                f" [{self.columns}, documents]; write them again with write_keys and the same LSH"
            )
        return keys

    def __getitem__(self, column: int) -> UInt64[np.ndarray, " n"]:
        return np.concatenate(
            [
                np.empty(0, dtype=np.uint64),
                *(np.array(self._open(path)[column]) for path in self.paths),
            ]
        )  # copied, so that each file is closed

    def locate(self, documents: Int64[np.ndarray, " m"]) -> list[tuple[int, int]]:
        """(unit, row) of documents that are numbered through all units."""
        units = np.searchsorted(self.starts, documents, side="right") - 1
        return list(zip(units.tolist(), (documents - self.starts[units]).tolist(), strict=True))


def find_duplicates(
    paths: Sequence[str | Path],
    lsh: LSH | None,
    keep: Literal["first", "longest"] = "first",
    *,
    sources: Sequence[str],
) -> Duplicates:
    """Find the duplicates among the documents of all units, whose keys `write_keys`
    wrote to `paths` with this same `lsh`.

    Of every cluster stays the first document, in the order of units and rows, or the
    longest text (of equally long ones the first). `sources` names the source of each
    unit, for the report. Texts without words are compared exactly only. One column of
    all units is held at a time, with its order, beside the clusters so far: about 40 MB
    per million documents, 75 MB where most of them are duplicates.

    Raises:
        ConfigError: an unknown `keep`, or not one source per unit.
        DataError: a file that cannot be read, or that holds no keys of this many bands.
    """
    if keep not in ("first", "longest"):
        raise ConfigError(f"keep = {keep!r}: must be 'first' or 'longest'")
    if len(sources) != len(paths):
        raise ConfigError(
            f"sources = {len(sources)} of them: must be one for each of the {len(paths)} units"
        )
    keys = _Keys(paths, lsh)
    label = np.arange(keys.starts[-1])
    left, right = _neighbours(keys[TEXT])
    rest = keys[TEXT_REST]
    same = rest[left] == rest[right]
    link(label, left[same], right[same])
    del rest
    exact_removed = int((label != np.arange(len(label))).sum())
    for band in range(lsh.bands if lsh else 0):
        link(label, *_neighbours(keys[BANDS + band]))

    members, sizes = _clusters(label, keys[BYTES] if keep == "longest" else None)
    heads = np.cumsum(sizes) - sizes
    removed = np.zeros(len(label), dtype=bool)
    removed[members] = True
    removed[members[heads]] = False
    units = np.split(removed, keys.starts[1:-1])[: len(paths)]
    largest = np.argsort(-sizes, kind="stable")[:EXAMPLES]
    ids = np.sort(keys[ID])
    report = DedupReport(
        documents=len(label),
        exact_removed=exact_removed,
        near_removed=int(removed.sum()) - exact_removed,
        cluster_sizes=dict(sorted(Counter(sizes.tolist()).items())),
        examples=[
            keys.locate(members[heads[i] : heads[i] + min(sizes[i], EXAMPLE_MEMBERS)])
            for i in largest
        ],
        removed_by_source=_shares(units, sources),
        repeated_ids=int((ids[1:] == ids[:-1]).sum()),
    )
    return Duplicates(units, report)


def _neighbours(
    key: UInt64[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Pairs of documents with the same key, each with the next of its group: as many as
    it takes to link the group.
    """
    order, heads = groups(key)
    pairs = np.ones(len(order), dtype=bool)
    pairs[heads] = False
    follower = np.flatnonzero(pairs)
    return order[follower - 1], order[follower]


def link(
    label: Int64[np.ndarray, " n"], left: Int64[np.ndarray, " m"], right: Int64[np.ndarray, " m"]
) -> None:
    """Join the clusters of left[k] and right[k] for all k. `label`, changed in place,
    holds each document's first fellow.

    In every round each cluster that has a neighbour with a smaller label hooks its
    first document onto one of them; then all pointers are followed to their ends.
    Labels only get smaller, so no circle can arise, and chains shorten at least by a
    constant factor.
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
    """Documents of the clusters of two or more, one cluster after another, the one that
    stays first; and the clusters' sizes.
    """
    follows = label != np.arange(len(label))
    follows[label[follows]] = True
    members = np.flatnonzero(follows)
    ranks = np.zeros(len(members), dtype=np.uint64) if lengths is None else ~lengths[members]
    members = members[np.lexsort((members, ranks, label[members]))]
    return members, np.unique(label[members], return_counts=True)[1]


def _shares(
    units: Sequence[Bool[np.ndarray, " documents"]], sources: Sequence[str]
) -> dict[str, float]:
    """The share of removed documents in each source; a source without documents has
    0.
    """
    removed, documents = Counter[str](), Counter[str]()
    for unit, source in zip(units, sources, strict=True):
        removed[source] += int(unit.sum())
        documents[source] += len(unit)
    return {source: removed[source] / max(documents[source], 1) for source in documents}
