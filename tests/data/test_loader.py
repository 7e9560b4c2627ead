"""The loader: one global order, whoever reads it, and a digest of all changes of it."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm2_minimal.config import IGNORE, DataError
from slm2_minimal.data.loader import Batch, Loader
from slm2_minimal.data.packing import TokenStream
from tests.data.conftest import LENGTHS, SEQ_LEN, WEIGHTS, make, same, stream


def glued(parts: Sequence[Batch]) -> Batch:
    return Batch(*(torch.cat(tensors) for tensors in zip(*map(astuple, parts), strict=True)))


def test_shapes() -> None:
    batch = make().batch(0, 6)
    for tensor in astuple(batch):
        assert tensor.shape == (6, SEQ_LEN)
        assert tensor.dtype == torch.int64


def test_rows_are_the_sequences_of_the_global_order() -> None:
    loader = make()
    batch = loader.batch(30, 8)
    for row in range(8):
        source, _, index = loader.locate(30 + row)
        sequence = loader.streams[source].sequence(index, SEQ_LEN)
        for tensor, name in zip(
            astuple(batch), ("input_ids", "labels", "position_ids", "document_ids"), strict=True
        ):
            assert tensor[row].tolist() == getattr(sequence, name).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_global_batch_does_not_depend_on_the_ranks(world_size: int) -> None:
    loader = make()
    for position in (0, 8, 13, 1000):
        parts = [make().batch(position, 8, rank, world_size) for rank in range(world_size)]
        assert all(len(part.input_ids) == 8 // world_size for part in parts)
        assert same(glued(parts), loader.batch(position, 8))


def test_large_batches_are_small_batches_in_a_row() -> None:
    loader = make()
    assert same(loader.batch(5, 12), glued([loader.batch(5, 4), loader.batch(9, 8)]))


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_every_sequence_once_in_every_epoch(
    counts: list[int], weights: list[int], seed: int
) -> None:
    names = "abcd"[: len(counts)]
    loader = make(
        {name: count * SEQ_LEN for name, count in zip(names, counts, strict=True)},
        {name: weight for name, weight in zip(names, weights, strict=False)},
        seed=seed,
    )
    assert loader.counts == counts
    read: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position in range(400):
        source, epoch, index = loader.locate(position)
        read[source, epoch].append(index)
    last = {source: max(e for s, e in read if s == source) for source, _ in read}
    for (source, epoch), indexes in read.items():
        if epoch < last[source]:
            assert sorted(indexes) == list(range(counts[source]))
        else:  # the one that is still going on
            assert max(Counter(indexes).values()) == 1


def test_epochs_are_shuffled_anew() -> None:
    def orders(loader: Loader) -> list[list[int]]:
        read: dict[int, list[int]] = defaultdict(list)
        for position in range(8 * 20):
            source, epoch, index = loader.locate(position)
            if source == 0 and epoch < 5:
                read[epoch].append(index)
        return list(read.values())

    first = orders(make())
    assert len({tuple(order) for order in first}) == 5
    assert list(range(11)) not in first
    assert orders(make()) == first
    assert orders(make(seed=8)) != first


def test_a_pure_function_of_the_position() -> None:
    """Asked from back to front, at random, and after more epochs than are remembered,
    the answers stay the same.
    """
    positions = [*range(60), 10**6, 10**12]
    expected = {position: make().locate(position) for position in positions}
    loader = make()
    for position in (
        *reversed(positions),
        *random.Random(0).sample(positions, len(positions)),
        *range(3000),
        *positions,
    ):
        answer = loader.locate(position)
        assert position not in expected or answer == expected[position]


def test_shares() -> None:
    """5 : 2 : 1, in any run of 8 that starts where a period starts."""
    loader = make()
    for period in range(5):
        assert Counter(loader.locate(period * 8 + i)[0] for i in range(8)) == {0: 5, 1: 2, 2: 1}


def test_epochs_by_hand() -> None:
    loader = make()
    assert loader.counts == [11, 5, 2]
    assert loader.epochs(0) == {"a": 0, "b": 0, "c": 0}
    assert loader.epochs(8) == {"a": 5 / 11, "b": 2 / 5, "c": 1 / 2}
    assert loader.epochs(80) == {"a": 50 / 11, "b": 20 / 5, "c": 10 / 2}
    first = loader.locate(0)[0]
    assert loader.epochs(1) == {
        name: (i == first) / loader.counts[i] for i, name in enumerate("abc")
    }


def test_epochs_agree_with_the_order() -> None:
    loader = make()
    taken = [0, 0, 0]
    for position in range(100):
        assert loader.epochs(position) == {
            name: n / count for name, n, count in zip("abc", taken, loader.counts, strict=True)
        }
        taken[loader.locate(position)[0]] += 1


# Caps, subsets and stages


def limited(**options: Any) -> Loader:
    streams = {name: stream(n, 1000 * i + 1) for i, (name, n) in enumerate(LENGTHS.items())}
    return Loader(streams, WEIGHTS, SEQ_LEN, 7, **options)


def test_a_source_is_exhausted_where_its_epochs_end() -> None:
    """Source c has 2 sequences and every eighth turn: with a cap of 3 epochs the
    seventh of its turns is refused.
    """
    loader = limited(max_epochs={"c": 3})
    turns = [position for position in range(60) if make().locate(position)[0] == 2]
    for position in turns[:6]:
        loader.locate(position)
    with pytest.raises(
        DataError,
        match=rf"^data\.sources\.c\.max_epochs = 3: .* exhaust them at position {turns[6]}; raise ",
    ):
        loader.locate(turns[6])
    loader.mixture.check_epochs(turns[6])
    with pytest.raises(DataError, match=r"^data\.sources\.c\.max_epochs = 3"):
        loader.mixture.check_epochs(turns[6] + 1)


def test_a_subset_is_a_fixed_random_part() -> None:
    def read(seed: int) -> set[int]:
        streams = {"a": stream(LENGTHS["a"], 1)}
        loader = Loader(streams, {"a": 1}, SEQ_LEN, seed, subset={"a": 0.5})
        assert loader.mixture.usable == (6,)
        epochs = [[loader.locate(6 * epoch + i)[2] for i in range(6)] for epoch in range(4)]
        assert len({tuple(epoch) for epoch in epochs}) > 1, "shuffled anew"
        assert len({frozenset(epoch) for epoch in epochs}) == 1, "the same six of eleven"
        return set(epochs[0])

    assert len(read(7)) == 6
    assert len({frozenset(read(seed)) for seed in range(20)}) > 10


def test_stages_change_the_weights_and_go_on_in_the_sources() -> None:
    loader = limited(stages={16: {"a": 1, "c": 1}})
    sources = [loader.locate(position)[0] for position in range(32)]
    assert Counter(sources[:16]) == {0: 10, 1: 4, 2: 2}
    assert Counter(sources[16:]) == {0: 8, 2: 8}
    read = [loader.locate(position)[1:] for position in range(32) if sources[position] == 0]
    assert sorted(read[:11]) == [(0, i) for i in range(11)], (
        "the first epoch ends in the second stage"
    )
    assert loader.fingerprint() != limited().fingerprint()


# The digest

BASE = make().fingerprint()


def test_the_fingerprint_is_the_same_for_the_same_data() -> None:
    loader = make()
    loader.batch(17, 4)
    assert loader.fingerprint() == BASE
    assert len(BASE) == 16


def test_the_fingerprint_of_an_old_run_is_still_its_fingerprint() -> None:
    """Or its checkpoints would be refused: these two are from before a renaming."""
    streams = {
        "a": TokenStream.from_documents([range(1, 60), [7, 8]], 0),
        "b": TokenStream.from_documents([range(1, 20)], 0),
    }
    assert Loader(streams, {"a": 3, "b": 1}, 8, 7).fingerprint() == "1ad8f31bd0636a58"
    staged = Loader(streams, {"a": 0.75, "b": 0.25}, 8, 7, stages={16: {"b": 2}}, subset={"a": 0.5})
    assert staged.fingerprint() == "618720967d2fc780"


STREAMS = {name: stream(length, 1000 * i + 1) for i, (name, length) in enumerate(LENGTHS.items())}


@pytest.mark.parametrize(
    "changed",
    [
        make(seed=8),
        make(seq_len=16),
        make(weights=WEIGHTS | {"c": 2}),
        make(lengths=LENGTHS | {"c": 12}),
        make(lengths={"a": 83, "b": 40}),
        make(lengths={"a": 83, "b": 40, "d": 11}, weights={"a": 5, "b": 2, "d": 1}),
        Loader(STREAMS | {"b": stream(40, 1002)}, WEIGHTS, SEQ_LEN, 7),
        Loader({name: STREAMS[name] for name in "cba"}, WEIGHTS, SEQ_LEN, 7),
    ],
    ids=["seed", "seq_len", "weight", "more text", "fewer sources", "a name", "a token", "order"],
)
def test_the_fingerprint_notices(changed: Loader) -> None:
    assert changed.fingerprint() != BASE


def test_the_fingerprint_notices_where_documents_start() -> None:
    one, two = (
        Loader({"a": TokenStream.from_documents(docs, 0)}, {"a": 1}, 4, 0)
        for docs in ([[1, 0, 2]], [[1], [2]])
    )
    assert one.streams[0].tokens.tolist() == two.streams[0].tokens.tolist() == [1, 0, 2, 0]
    assert one.fingerprint() != two.fingerprint()


# Errors


@pytest.mark.parametrize(("sequences", "world_size"), [(6, 4), (1, 2), (7, 3)])
def test_a_batch_that_does_not_divide(sequences: int, world_size: int) -> None:
    with pytest.raises(
        DataError,
        match=(
            rf"^sequences = {sequences}: .* {world_size} ranks; change train.global_batch_tokens$"
        ),
    ):
        make().batch(0, sequences, 0, world_size)


def test_an_empty_source() -> None:
    with pytest.raises(
        DataError,
        match=r"^data\.sources\.b: has no text to train on; check its path, languages and domains",
    ):
        Loader({"a": stream(10, 1), "b": TokenStream.from_documents([], 0)}, {"a": 1, "b": 1}, 4, 0)


# Batches


def test_split_and_valid_tokens() -> None:
    batch = make().batch(0, 7)
    parts = batch.split(3)
    assert [len(part.input_ids) for part in parts] == [3, 3, 1]
    assert same(glued(parts), batch)
    assert (
        batch.valid_tokens
        == sum(part.valid_tokens for part in parts)
        == int((batch.labels != IGNORE).sum())
    )
    assert 0 < batch.valid_tokens < batch.labels.numel()


def test_valid_tokens_by_hand() -> None:
    loader = Loader(
        {"a": TokenStream.from_documents([[5, 6, 7], [8], [9, 10, 11, 12]], 0)}, {"a": 1}, 4, 0
    )
    assert [loader.batch(0, 3).valid_tokens, loader.batch(3, 3).valid_tokens] == [8, 8]
    assert sorted(loader.batch(i, 1).valid_tokens for i in range(3)) == [2, 3, 3]


def test_to_another_device() -> None:
    batch = make().batch(0, 2)
    assert same(batch.to("cpu"), batch)
    assert all(tensor.device.type == "meta" for tensor in astuple(batch.to("meta")))
