"""Batches as a pure function of a position, a rank and a world size.

There is one global order of sequences, blended from the sources and shuffled within
each by epoch; it does not depend on how many ranks read it. What must be saved to
resume is one integer, the position, and a fingerprint that tells whether the data is
still the same. Nothing is held per token or per document: sequences are cut from the
streams, which may lie on disk, when they are asked for, and every shuffled order is
computed.
"""

import functools
import hashlib
import itertools
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slm2_minimal.config import IGNORE, DataError
from slm2_minimal.data.mixture import Mixture, Stage
from slm2_minimal.data.packing import PackedSequence, Stream
from slm2_minimal.data.shuffle import Permutation

SUBSET = (
    2**32
)  # stands where an epoch's number stands in a permutation's key: which sequences a subset has
AHEAD = 4  # batches that a worker process reads in advance


@dataclass(frozen=True)
class Batch:
    """Rows of packed sequences, all (B, T) int64."""

    input_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    document_ids: Int[Tensor, "B T"]

    @classmethod
    def stack(cls, rows: list[PackedSequence]) -> "Batch":
        """Rows of equal length as one batch."""
        names = ("input_ids", "labels", "position_ids", "document_ids")
        return cls(
            *(torch.from_numpy(np.stack([getattr(row, name) for row in rows])) for name in names)
        )

    @property
    def valid_tokens(self) -> int:
        """How many positions have a label."""
        return int((self.labels != IGNORE).sum())

    @property
    def attention_ids(self) -> Int[Tensor, "B T"] | None:
        """`document_ids` for the model; None where every row is one document, so that
        attention needs no mask and is faster.
        """
        return (
            None
            if bool((self.document_ids[:, 0] == self.document_ids[:, -1]).all())
            else self.document_ids
        )

    def split(self, rows: int) -> list["Batch"]:
        """Micro-batches of `rows` rows."""
        parts = zip(
            *(
                tensor.split(rows)
                for tensor in (self.input_ids, self.labels, self.position_ids, self.document_ids)
            ),
            strict=True,
        )
        return [Batch(*part) for part in parts]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            *(
                t.to(device, non_blocking=True)
                for t in (self.input_ids, self.labels, self.position_ids, self.document_ids)
            )
        )


class Loader:
    """The blended, shuffled, endless order of sequences over token streams."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        weights: Mapping[str, float],
        seq_len: int,
        seed: int,
        *,
        stages: Mapping[int, Mapping[str, float]] | None = None,
        max_epochs: Mapping[str, float] | None = None,
        subset: Mapping[str, float] | None = None,
    ) -> None:
        """`weights` are those of `data.mixture.integer_weights`; `stages` change them
        from a position on; caps and subsets are by source.

        Raises:
            DataError: a source without any tokens, or weights, stages, caps or subsets
            that cannot be.
        """
        self.names = list(streams)
        self.streams = [streams[name] for name in self.names]
        self.seq_len, self.seed = seq_len, seed
        self.counts = [stream.num_sequences(seq_len) for stream in self.streams]
        for name, count in zip(self.names, self.counts, strict=True):
            if count == 0:
                raise DataError(
                    f"data.sources.{name}: has no text to train on; check its path, languages and"
                    " domains, and data.validation_percent"
                )
        self.mixture = Mixture(
            self.names,
            [
                Stage.named(start, table, self.names)
                for start, table in sorted({0: weights, **(stages or {})}.items())
            ],
            self.counts,
            [(max_epochs or {}).get(name) for name in self.names],
            [(subset or {}).get(name, 1.0) for name in self.names],
        )

    def locate(self, position: int) -> tuple[int, int, int]:
        """(source, epoch, index of the sequence in the source) at a position of the
        global order.

        Raises DataError where the source is exhausted: `mixture.check` tells that
        before a run.
        """
        source, turn = self.mixture.locate(position)
        epoch, place = divmod(turn, self.mixture.usable[source])
        return source, epoch, self._shuffled(source, SUBSET)[self._shuffled(source, epoch)[place]]

    @functools.lru_cache(maxsize=256)  # noqa: B019  a few numbers each; the loader lives as long as the run
    def _shuffled(self, source: int, epoch: int) -> Permutation:
        """The order of one epoch over the usable sequences; with SUBSET, which of all
        sequences those are.
        """
        length = self.counts[source] if epoch == SUBSET else self.mixture.usable[source]
        return Permutation(length, self.seed, source, epoch)

    def batch(self, position: int, sequences: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's share of the global batch of `sequences` rows at `position`:
        consecutive rows, in rank order.

        Raises:
            DataError: the rows do not divide among the ranks.
        """
        if sequences % world_size:
            raise DataError(
                f"sequences = {sequences}: a global batch must divide among {world_size} ranks;"
                " change train.global_batch_tokens"
            )
        share = sequences // world_size
        rows = []
        for place in range(position + rank * share, position + (rank + 1) * share):
            source, _, index = self.locate(place)
            rows.append(self.streams[source].sequence(index, self.seq_len))
        return Batch.stack(rows)

    def batches(
        self, position: int, sequences: int, rank: int = 0, world_size: int = 1, *, workers: int = 0
    ) -> Iterator[Batch]:
        """`batch` at `position`, `position + sequences`, ... without end; read ahead by
        `workers` processes, in the same order.
        """
        positions = itertools.count(position, sequences)
        dataset = _Batches(self, sequences, rank, world_size)
        ahead, init = AHEAD if workers else None, _leave_signals_to_the_trainer
        return iter(
            DataLoader(
                dataset,
                None,
                sampler=positions,
                num_workers=workers,
                prefetch_factor=ahead,
                worker_init_fn=init,
            )
        )

    def epochs(self, position: int) -> dict[str, float]:
        """How often each source's usable sequences have been read through by the time
        `position` is reached.
        """
        return self.mixture.epochs(position)

    def fingerprint(self) -> str:
        """A digest of everything that the order depends on; a checkpoint holds it."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        order = (self.names, self.mixture.stages, self.mixture.usable, self.seq_len, self.seed)
        parts = [repr(order), *(stream.digest() for stream in self.streams)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class _Batches(Dataset[Batch]):
    """A loader as the map-style data set that torch's worker processes understand:
    position -> batch.
    """

    def __init__(self, loader: Loader, sequences: int, rank: int, world_size: int) -> None:
        self.loader, self.sequences, self.rank, self.world_size = (
            loader,
            sequences,
            rank,
            world_size,
        )

    def __getitem__(self, position: int) -> Batch:
        return self.loader.batch(position, self.sequences, self.rank, self.world_size)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A forked process has the trainer's handlers, and a terminal or a batch system
    signals all processes: only the trainer is to answer.

    The trainer ends its workers by itself, and a worker ends when its trainer is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
