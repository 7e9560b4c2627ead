"""From tokenised documents to sequences of fixed length.

Documents, each closed by the end-of-text token, are laid end to end and cut every
`seq_len` tokens. Nothing is padded but the very end. Inside a sequence, positions
restart with every document, `document_ids` tell the attention who belongs together, and
the first token of a document is never a target of the one before.

Conversations are documents too. Of those, some tokens are not learned: their ids carry
a mark, and they are never a target.
"""

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int

from slm2_minimal.config import IGNORE

UNLEARNED = np.uint32(1 << 31)  # in an id; the largest vocabulary has ids of 24 bits


class PackedSequence(NamedTuple):
    """One sequence, which becomes a row of a batch: four arrays of T int64."""

    input_ids: Int[np.ndarray, " T"]
    labels: Int[np.ndarray, " T"]
    position_ids: Int[np.ndarray, " T"]
    document_ids: Int[np.ndarray, " T"]


class Stream(Protocol):
    """A source of sequences: a `TokenStream`, or a `data.shards.ShardedStream`."""

    @property
    def num_tokens(self) -> int:
        """How many tokens it has, ends of text included."""

    def num_sequences(self, seq_len: int) -> int:
        """How many sequences of `seq_len` it gives, the last one padded."""

    def sequence(self, index: int, seq_len: int) -> PackedSequence:
        """The one at `index`. Raises IndexError where there is none."""

    def digest(self) -> str:
        """Changes with every token and every document border."""


@dataclass(frozen=True)
class TokenStream(Stream):
    """Documents laid end to end: all tokens, uint32, since a vocabulary of 100,352 does
    not fit 16 bits, and where each document starts. Both may be memory-mapped files. A
    token that is not learned is its id + UNLEARNED.
    """

    tokens: Int[np.ndarray, " N"]
    starts: Int[np.ndarray, " documents"]
    eos: int

    @classmethod
    def from_documents(
        cls, documents: Iterable[Sequence[int] | np.ndarray], eos: int
    ) -> "TokenStream":
        """Lay out lists or arrays of token ids, each followed by `eos`; empty ones are
        left out.
        """
        end = np.asarray([eos], dtype=np.uint32)
        parts = [end[:0]]
        lengths = []
        for document in documents:
            if len(document):
                parts += [np.asarray(document, dtype=np.uint32), end]
                lengths.append(len(document) + 1)
        return cls.from_lengths(np.concatenate(parts), np.asarray(lengths, dtype=np.int64), eos)

    @classmethod
    def from_lengths(
        cls, tokens: Int[np.ndarray, " N"], lengths: Int[np.ndarray, " documents"], eos: int
    ) -> "TokenStream":
        """Documents that lie end to end already; a length includes the `eos`."""
        return cls(tokens, np.cumsum(lengths) - lengths, eos)

    @classmethod
    def joined(cls, streams: Sequence["TokenStream"]) -> "TokenStream":
        """One stream after the other; at least one."""
        tokens = np.concatenate([stream.tokens for stream in streams])
        offsets = np.cumsum([0, *(stream.num_tokens for stream in streams)])
        starts = [stream.starts + n for stream, n in zip(streams, offsets, strict=False)]
        return cls(tokens, np.concatenate(starts), streams[0].eos)

    def only(self, chosen: Bool[np.ndarray, " documents"]) -> "TokenStream":
        """The stream of some of its documents."""
        if chosen.all():
            return self
        lengths = np.diff(self.starts, append=self.num_tokens)
        tokens = self.tokens[np.repeat(chosen, lengths)]
        return TokenStream.from_lengths(tokens, lengths[chosen], self.eos)

    def laid_out(self, seq_len: int) -> "TokenStream":
        """The same documents, none longer than `seq_len`, in an order in which no cut
        falls into one: each goes where it leaves the least room, else begins a sequence
        (best fit). What stays empty is padding, which is not learned.
        """
        lengths = np.diff(self.starts, append=self.num_tokens)
        sequences: list[list[tuple[int, int]]] = []
        rooms: list[tuple[int, int]] = []  # room and number of a sequence, in order
        for start, length in zip(self.starts.tolist(), lengths.tolist(), strict=True):
            assert length <= seq_len
            place = bisect.bisect_left(rooms, (length, 0))
            if place == len(rooms):
                rooms.append((seq_len, len(sequences)))
                sequences.append([])
            room, number = rooms.pop(place)
            sequences[number].append((start, start + length))
            bisect.insort(rooms, (room - length, number))

        # the padding of each is one document more
        parts = [self.tokens[:0]]
        rooms_by_number = sorted((number, room) for room, number in rooms)
        for spans, (_, room) in zip(sequences, rooms_by_number, strict=True):
            parts += [self.tokens[start:end] for start, end in spans]
            if room:
                parts.append(np.full(room, self.eos | UNLEARNED, dtype=np.uint32))
        sizes = np.asarray([len(part) for part in parts[1:]], dtype=np.int64)
        return TokenStream.from_lengths(np.concatenate(parts), sizes, self.eos)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def num_sequences(self, seq_len: int) -> int:
        return -(-self.num_tokens // seq_len)

    def sequence(self, index: int, seq_len: int) -> PackedSequence:
        """Tokens [index * seq_len, (index + 1) * seq_len), each labelled with the token
        after it in the same document, if that is learned: the last one across the cut,
        so that no target is lost. A document that was cut goes on at position 0 in the
        next sequence. Padding is `eos` in a document of its own, without labels.
        """
        begin = index * seq_len
        if not 0 <= begin < self.num_tokens:
            raise IndexError(f"sequence {index} of {self.num_sequences(seq_len)}")
        marked = self.tokens[begin : begin + seq_len + 1]
        window = (marked & ~UNLEARNED).astype(np.int64)
        unpadded = min(seq_len, len(window))

        # owner[t]: which document of the window its token t belongs to. Two look-ups in
        # all of `starts`, which may be a file of millions, then only those inside.
        positions = np.arange(begin, begin + len(window))
        first, last = np.searchsorted(self.starts, positions[[0, -1]], side="right")
        owner = np.searchsorted(self.starts[first:last], positions, side="right")

        # padding, then what there is
        input_ids = np.full(seq_len, self.eos, dtype=np.int64)
        input_ids[:unpadded] = window[:unpadded]
        document_ids = np.full(seq_len, owner[unpadded - 1] + 1, dtype=np.int64)
        document_ids[:unpadded] = owner[:unpadded]
        labels = np.full(seq_len, IGNORE, dtype=np.int64)
        is_target = (owner[1:] == owner[:-1]) & (marked[1:] < UNLEARNED)
        labels[: len(is_target)] = np.where(is_target, window[1:], IGNORE)
        return PackedSequence(input_ids, labels, restarting_positions(document_ids), document_ids)

    def digest(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens).data)
        digest.update(np.ascontiguousarray(self.starts).data)
        return digest.hexdigest()


def restarting_positions(document_ids: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """0, 1, 2, ... from the first token of every document on."""
    index = np.arange(len(document_ids))
    first = np.concatenate([[True], document_ids[1:] != document_ids[:-1]])
    return index - np.maximum.accumulate(np.where(first, index, 0))
