"""Batches as a pure function of a position, a rank and a world size.

There is one global order of sequences, blended from the sources and shuffled within each by epoch; it does not depend
on how many ranks read it. What must be saved to resume is one integer, the position, and a fingerprint that tells
whether the data is still the same.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from slm2_minimal.config import DataError
from slm2_minimal.data.mixture import QuotaSchedule
from slm2_minimal.data.packing import IGNORE, PackedSequence, TokenStream


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
        return cls(*(torch.from_numpy(np.stack([getattr(row, name) for row in rows])) for name in names))

    @property
    def valid_tokens(self) -> int:
        """How many positions have a label."""
        return int((self.labels != IGNORE).sum())

    def split(self, rows: int) -> list["Batch"]:
        """Micro-batches of `rows` rows."""
        parts = zip(*(tensor.split(rows) for tensor in (self.input_ids, self.labels, self.position_ids, self.document_ids)), strict=True)
        return [Batch(*part) for part in parts]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(*(t.to(device, non_blocking=True) for t in (self.input_ids, self.labels, self.position_ids, self.document_ids)))


class Loader:
    """The blended, shuffled, endless order of sequences over in-memory token streams."""

    def __init__(self, streams: Mapping[str, TokenStream], weights: Mapping[str, int], seq_len: int, seed: int) -> None:
        """Raises DataError for a source without any tokens."""
        self.names = list(streams)
        self.streams = [streams[name] for name in self.names]
        self.seq_len, self.seed = seq_len, seed
        self.counts = [stream.num_sequences(seq_len) for stream in self.streams]
        for name, count in zip(self.names, self.counts, strict=True):
            if count == 0:
                raise DataError(
                    f"data.sources.{name}: has no text to train on; check its path, languages and domains, and data.validation_percent"
                )
        self.schedule = QuotaSchedule([weights[name] for name in self.names])

    @functools.lru_cache(maxsize=64)  # noqa: B019  one permutation per source and epoch; the loader lives as long as the run
    def _permutation(self, source: int, epoch: int) -> Int[np.ndarray, " n"]:
        return np.random.default_rng([self.seed, source, epoch]).permutation(self.counts[source])

    def locate(self, position: int) -> tuple[int, int, int]:
        """(source, epoch, index of the sequence in the source) at a position of the global order."""
        source, turn = self.schedule[position]
        epoch, place = divmod(turn, self.counts[source])
        return source, epoch, int(self._permutation(source, epoch)[place])

    def batch(self, position: int, sequences: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's rows of the global batch of `sequences` sequences that starts at `position`.

        Raises DataError where `sequences` does not divide among the ranks.
        """
        if sequences % world_size:
            raise DataError(
                f"sequences = {sequences}: a global batch must divide among {world_size} ranks; change train.global_batch_tokens"
            )
        share = sequences // world_size
        rows = []
        for place in range(position + rank * share, position + (rank + 1) * share):
            source, _, index = self.locate(place)
            rows.append(self.streams[source].sequence(index, self.seq_len))
        return Batch.stack(rows)

    def epochs(self, position: int) -> dict[str, float]:
        """How often each source has been read through by the time `position` is reached."""
        periods, place = divmod(position, self.schedule.period)
        taken = np.bincount(self.schedule.sources[:place], minlength=len(self.names)) + periods * np.asarray(self.schedule.weights)
        return {name: float(turns / count) for name, turns, count in zip(self.names, taken, self.counts, strict=True)}

    def fingerprint(self) -> str:
        """A digest of everything that the order depends on; a checkpoint holds it."""
        digest = hashlib.sha256(repr((self.names, self.schedule.weights, self.seq_len, self.seed)).encode())
        for stream in self.streams:
            digest.update(stream.tokens.tobytes())
            digest.update(stream.starts.tobytes())
        return digest.hexdigest()[:16]
