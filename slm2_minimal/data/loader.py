"""Batches as a pure function of a position, a rank and a world size.

There is one global order of sequences, blended from the sources and shuffled within
each by epoch; it does not depend on how many ranks read it. To resume, one integer is
saved, the position, and a fingerprint of the data. Nothing is held per token or per
document: sequences are cut from the streams, which may lie on disk, when they are asked
for, and every shuffled order is computed.
"""

import functools
import hashlib
import itertools
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slm2_minimal.config import IGNORE, DataError, UserError
from slm2_minimal.data.mixture import Mixture, WeightStage
from slm2_minimal.data.packing import PackedSequence, Stream
from slm2_minimal.data.shuffle import Permutation

SUBSET = 2**32  # in the key of a permutation, in place of an epoch: which sequences are usable
BATCHES_AHEAD = 4  # that a worker process reads in advance


@dataclass(frozen=True)
class Batch:
    """Rows of packed sequences, all (B, T) int64."""

    input_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    document_ids: Int[Tensor, "B T"]

    @classmethod
    def stack(cls, sequences: Sequence[PackedSequence]) -> "Batch":
        """Sequences of equal length, each as a row."""
        columns = zip(*sequences, strict=True)
        return cls(*(torch.from_numpy(np.stack(column)) for column in columns))

    @property
    def valid_tokens(self) -> int:
        """How many positions have a label."""
        return int((self.labels != IGNORE).sum())

    @functools.cached_property
    def attention_ids(self) -> Int[Tensor, "B T"] | None:
        """`document_ids`, or None where no row needs a mask: attention is faster."""
        one_document_a_row = (self.document_ids[:, 0] == self.document_ids[:, -1]).all()
        return None if one_document_a_row else self.document_ids

    def split(self, rows: int) -> list["Batch"]:
        """Micro-batches of `rows` rows."""
        parts = zip(*(tensor.split(rows) for tensor in self._tensors()), strict=True)
        return [Batch(*part) for part in parts]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved = Batch(*(tensor.to(device, non_blocking=True) for tensor in self._tensors()))
        # Asked here, on the host: a GPU would have to be waited for.
        needs_mask = self.attention_ids is not None
        moved.__dict__["attention_ids"] = moved.document_ids if needs_mask else None
        return moved

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.input_ids, self.labels, self.position_ids, self.document_ids

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as arrays, which go through a pipe: tensors would go through
        /dev/shm, and a container has 64 MB of it.
        """
        return _of_arrays, tuple(tensor.numpy() for tensor in self._tensors())


def _of_arrays(*arrays: np.ndarray) -> Batch:
    return Batch(*map(torch.from_numpy, arrays))


class Location(NamedTuple):
    """A sequence of a source, read for the `epoch`-th time; all count from 0."""

    source: int
    epoch: int
    sequence: int


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
        """`weights` are those of `integer_weights`; `stages` change them from a
        position on. Raises DataError for a source without tokens, and as `Mixture`.
        """
        self.names = list(streams)
        self.streams = list(streams.values())
        self.seq_len = seq_len
        self.seed = seed
        self.counts = [stream.num_sequences(seq_len) for stream in self.streams]

        tables = sorted({0: weights, **(stages or {})}.items())
        weight_stages = [WeightStage.named(start, table, self.names) for start, table in tables]
        caps = [(max_epochs or {}).get(name) for name in self.names]
        shares = [(subset or {}).get(name, 1.0) for name in self.names]
        self.mixture = Mixture(self.names, weight_stages, self.counts, caps, shares)

    def locate(self, position: int) -> Location:
        """Which sequence stands at a position of the global order.

        Raises DataError where the source is exhausted; `mixture.check_epochs` tells
        that before a run.
        """
        source, turn = self.mixture.locate(position)
        epoch, n = divmod(turn, self.mixture.usable[source])
        # the n-th of this epoch's order is one of the usable, which are some of all
        usable = self.shuffled(source, epoch)[n]
        return Location(source, epoch, self.shuffled(source, SUBSET)[usable])

    @functools.lru_cache(maxsize=256)  # noqa: B019  a few numbers each; few loaders in a process
    def shuffled(self, source: int, epoch: int) -> Permutation:
        """The order of one epoch; with SUBSET, which of all sequences are usable."""
        length = self.counts[source] if epoch == SUBSET else self.mixture.usable[source]
        return Permutation(length, self.seed, source, epoch)

    def batch(self, position: int, sequences: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's share of the global batch of `sequences` at `position`, in rank
        order. Raises DataError where the shares cannot be equal.
        """
        if sequences % world_size:
            raise DataError(
                f"sequences = {sequences}: a global batch must divide among {world_size} ranks;"
                " change train.global_batch_tokens"
            )
        share = sequences // world_size
        first = position + rank * share
        locations = map(self.locate, range(first, first + share))
        return Batch.stack(
            [self.streams[source].sequence(index, self.seq_len) for source, _, index in locations]
        )

    def batches(
        self, position: int, sequences: int, rank: int = 0, world_size: int = 1, *, workers: int = 0
    ) -> Iterator[Batch]:
        """`batch` at `position`, `position + sequences`, ... without end.

        `workers` processes read ahead, in the same order.

        Raises:
            DataError: as `batch`, from a worker too; no worker can be started.
            RuntimeError: a worker was killed.
        """
        loader = DataLoader(
            _BatchAt(self, sequences, rank, world_size),
            batch_size=None,
            sampler=itertools.count(position, sequences),
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            worker_init_fn=_leave_signals_to_the_trainer,
        )

        # here the workers start
        try:
            batches = iter(loader)
        except OSError as error:  # its locks lie in /dev/shm
            raise DataError(
                f"data.workers = {workers}: cannot be started ({error.strerror}); mend that, or"
                " set it to 0"
            ) from None
        for batch in batches:
            if isinstance(batch, UserError):
                del batches  # the last reference ends the workers
                raise batch
            yield batch

    def epochs(self, position: int) -> dict[str, float]:
        """How often each source has been read through, as `Mixture.epochs` says."""
        return self.mixture.epochs(position)

    @functools.cache  # noqa: B019  one text; few loaders in a process
    def fingerprint(self) -> str:
        """A digest of everything that the order depends on; a checkpoint holds it."""
        # this text must stay as it is: the checkpoints of old runs hold its digest
        stages = [f"Stage(start={s.start}, weights={s.weights})" for s in self.mixture.stages]
        listed = ", ".join(stages) if len(stages) > 1 else f"{stages[0]},"
        order = f"({self.names}, ({listed}), {self.mixture.usable}, {self.seq_len}, {self.seed})"

        parts = [order, *(stream.digest() for stream in self.streams)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass
class _BatchAt(Dataset[Batch | UserError]):
    """A loader as the data set of torch's worker processes: position to batch.

    A user's error is a value: torch would send it with its traceback.
    """

    loader: Loader
    sequences: int
    rank: int
    world_size: int

    def __getitem__(self, position: int) -> Batch | UserError:
        try:
            return self.loader.batch(position, self.sequences, self.rank, self.world_size)
        except UserError as error:
            return error


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ignore what a terminal or a batch system sends to all processes: only the trainer
    is to answer. It ends its workers, and a worker ends when its trainer is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
