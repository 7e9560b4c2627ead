"""Packing: one case by hand, and what must hold for any documents and any length."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slm2_minimal.config import IGNORE
from slm2_minimal.data.packing import PackedSequence, TokenStream, restarting_positions

EOS = 0
documents = st.lists(st.lists(st.integers(1, 100_352), max_size=12), max_size=8)
lengths = st.integers(1, 9)


def all_sequences(stream: TokenStream, seq_len: int) -> list[PackedSequence]:
    return [stream.sequence(i, seq_len) for i in range(stream.num_sequences(seq_len))]


def rows(sequence: PackedSequence) -> tuple[list[int], ...]:
    return tuple(
        getattr(sequence, name).tolist()
        for name in ("input_ids", "labels", "position_ids", "document_ids")
    )


def test_by_hand() -> None:
    """5 6 7 . | 8 . 9 10 | 11 12 . , where . ends a document: cut every 4 tokens, the
    second cut goes through a document.
    """
    stream = TokenStream.from_documents([[5, 6, 7], [8], [9, 10, 11, 12]], EOS)
    assert stream.tokens.tolist() == [5, 6, 7, 0, 8, 0, 9, 10, 11, 12, 0]
    assert stream.starts.tolist() == [0, 4, 6]
    assert stream.num_sequences(4) == 3
    no = IGNORE
    # ids              labels             positions     documents
    assert rows(stream.sequence(0, 4)) == ([5, 6, 7, 0], [6, 7, 0, no], [0, 1, 2, 3], [0, 0, 0, 0])
    assert rows(stream.sequence(1, 4)) == (
        [8, 0, 9, 10],
        [0, no, 10, 11],
        [0, 1, 0, 1],
        [0, 0, 1, 1],
    )
    assert rows(stream.sequence(2, 4)) == (
        [11, 12, 0, 0],
        [12, 0, no, no],
        [0, 1, 2, 0],
        [0, 0, 0, 1],
    )


def test_one_long_sequence_by_hand() -> None:
    stream = TokenStream.from_documents([[5, 6], [8]], EOS)
    no = IGNORE
    assert stream.num_sequences(7) == 1
    assert rows(stream.sequence(0, 7)) == (
        [5, 6, 0, 8, 0, 0, 0],
        [6, 0, no, 0, no, no, no],
        [0, 1, 2, 0, 1, 0, 1],
        [0, 0, 0, 1, 1, 2, 2],
    )


def test_ignore_is_what_torch_ignores() -> None:
    assert IGNORE == -100


@given(docs=documents, seq_len=lengths)
@example(docs=[[1, 2, 3]], seq_len=4)  # ends exactly at the cut
@example(docs=[[1, 2, 3], [4]], seq_len=4)  # the cut falls between two documents
@example(docs=[[1, 2, 3, 4], [5]], seq_len=4)  # the cut falls before an end-of-text token
def test_every_token_but_the_first_of_a_document_is_a_target_once(
    docs: list[list[int]], seq_len: int
) -> None:
    stream = TokenStream.from_documents(docs, EOS)
    targets = [int(t) for s in all_sequences(stream, seq_len) for t in s.labels if t != IGNORE]
    assert targets == [token for doc in docs if doc for token in [*doc[1:], EOS]]


@given(
    docs=st.lists(
        st.tuples(st.lists(st.integers(1, 100_352), min_size=1, max_size=12), st.booleans()),
        max_size=8,
    )
)
def test_some_of_the_documents(docs: list[tuple[list[int], bool]]) -> None:
    stream = TokenStream.from_documents([tokens for tokens, _ in docs], EOS).only(
        np.array([chosen for _, chosen in docs], dtype=bool)
    )
    alone = TokenStream.from_documents([tokens for tokens, chosen in docs if chosen], EOS)
    assert (stream.tokens.tolist(), stream.starts.tolist()) == (
        alone.tokens.tolist(),
        alone.starts.tolist(),
    )


@given(docs=documents, seq_len=lengths)
def test_nothing_is_lost_or_moved(docs: list[list[int]], seq_len: int) -> None:
    """Inputs laid end to end are the stream and padding; each label is the token after
    its input, of the same document.
    """
    stream = TokenStream.from_documents(docs, EOS)
    flat = [token for doc in docs if doc for token in [*doc, EOS]]
    owner = [number for number, doc in enumerate(doc for doc in docs if doc) for _ in [*doc, EOS]]
    sequences = all_sequences(stream, seq_len)
    assert [int(i) for s in sequences for i in s.input_ids] == flat + [EOS] * (
        len(sequences) * seq_len - len(flat)
    )
    for number, label in enumerate(int(i) for s in sequences for i in s.labels):
        inside = number + 1 < len(flat) and owner[number] == owner[number + 1]
        assert label == (flat[number + 1] if inside else IGNORE)


@given(docs=documents, seq_len=lengths)
def test_documents_and_positions(docs: list[list[int]], seq_len: int) -> None:
    """Document ids count up from 0 where a document starts, padding is one more;
    positions count from 0 in each.
    """
    stream = TokenStream.from_documents(docs, EOS)
    starts = set(stream.starts.tolist()) | {len(stream.tokens)}
    for index, sequence in enumerate(all_sequences(stream, seq_len)):
        document, position = 0, 0
        for place in range(seq_len):
            if place and index * seq_len + place in starts:
                document, position = document + 1, 0
            assert (sequence.document_ids[place], sequence.position_ids[place]) == (
                document,
                position,
            )
            position += 1
        for array in (
            sequence.input_ids,
            sequence.labels,
            sequence.position_ids,
            sequence.document_ids,
        ):
            assert array.dtype == np.int64
            assert array.shape == (seq_len,)


@given(docs=documents, seq_len=lengths)
def test_labels_never_cross_documents(docs: list[list[int]], seq_len: int) -> None:
    """In the row itself: where the next place is another document, there is no label,
    whatever the next token is.
    """
    for sequence in all_sequences(TokenStream.from_documents(docs, EOS), seq_len):
        ends = np.flatnonzero(np.diff(sequence.document_ids))
        assert (sequence.labels[ends] == IGNORE).all()


def test_a_long_document_restarts_in_each_sequence_and_loses_no_target() -> None:
    stream = TokenStream.from_documents([list(range(1, 20))], EOS)
    first, second, *_ = all_sequences(stream, 6)
    assert first.labels.tolist() == [2, 3, 4, 5, 6, 7]  # 7 is read across the cut
    assert second.input_ids.tolist() == [7, 8, 9, 10, 11, 12]
    assert second.position_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert second.document_ids.tolist() == [0] * 6


def test_ids_beyond_sixteen_bits_survive() -> None:
    ids = [65_535, 65_536, 100_288, 2**31 - 1]  # the highest bit is a mark
    stream = TokenStream.from_documents([ids], 100_257)
    assert stream.tokens.dtype == np.uint32
    sequence = stream.sequence(0, 5)
    assert sequence.input_ids.tolist() == [*ids, 100_257]
    assert sequence.labels.tolist() == [*ids[1:], 100_257, IGNORE]


def test_empty_documents_and_streams() -> None:
    assert TokenStream.from_documents([[], [3], []], EOS).tokens.tolist() == [3, 0]
    for empty in (TokenStream.from_documents([], EOS), TokenStream.from_documents([[], []], EOS)):
        assert (len(empty.tokens), len(empty.starts), empty.num_sequences(4)) == (0, 0, 0)


def test_sequences_that_are_not_there() -> None:
    stream = TokenStream.from_documents([[1, 2, 3, 4]], EOS)
    for index in (2, 100, -1):
        with pytest.raises(IndexError, match=f"sequence {index} of 2"):
            stream.sequence(index, 4)


@given(starts=st.lists(st.booleans(), min_size=1, max_size=30))
def test_restarting_positions(starts: list[bool]) -> None:
    expected: list[int] = []
    for start in starts:
        expected.append(0 if start or not expected else expected[-1] + 1)
    assert restarting_positions(np.cumsum(starts)).tolist() == expected
