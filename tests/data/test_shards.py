"""Shards: what was written is what is read, however many there are."""

import pickle
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from slm2_minimal.data.loader import Loader
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import Shard, ShardedStream, verify, write_shard
from tests.complaints import data_error
from tests.test_imports import GRAPH, MODULES

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [16, 17, 18]]


def test_a_stream_over_shards_is_its_shards_in_a_row(tmp_path: Path) -> None:
    streams = [TokenStream.from_documents(part, 0) for part in (DOCUMENTS[:2], [], DOCUMENTS[2:])]
    stream = ShardedStream(
        tmp_path, [write_shard(tmp_path, f"s-{i}", s) for i, s in enumerate(streams)], 0
    )
    for seq_len in (1, 2, 3, 4, 7, 100):
        expected = [
            s.sequence(i, seq_len) for s in streams for i in range(s.num_sequences(seq_len))
        ]
        assert stream.num_sequences(seq_len) == len(expected)
        for index, sequence in enumerate(expected):
            ours = stream.sequence(index, seq_len)
            for name in ("input_ids", "labels", "position_ids", "document_ids"):
                assert getattr(ours, name).tolist() == getattr(sequence, name).tolist()
        with pytest.raises(IndexError, match=f"sequence {len(expected)} of {len(expected)}"):
            stream.sequence(len(expected), seq_len)


def test_tokens_are_uint32_on_disk(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "s", TokenStream.from_documents([[100_288, 70_000]], 100_257))
    tokens, starts = (np.load(tmp_path / name) for name in shard.files)
    assert (tokens.dtype, tokens.tolist()) == (np.uint32, [100_288, 70_000, 100_257])
    assert (starts.dtype, starts.tolist()) == (np.int64, [0])


def test_a_stream_is_sent_to_another_process_without_its_tokens(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "s", TokenStream.from_documents([list(range(1, 100_000))], 0))
    stream = ShardedStream(tmp_path, [shard], 0)
    stream.sequence(0, 16)
    sent = pickle.dumps(stream)
    assert len(sent) < 2_000
    assert (
        pickle.loads(sent).sequence(3, 16).input_ids.tolist()
        == stream.sequence(3, 16).input_ids.tolist()
    )


def test_ten_million_documents_cost_no_memory(tmp_path: Path) -> None:
    """A source of 400 shards and 10 million documents, simulated: every shard is the
    same two files, of which one is mostly a hole.
    """
    documents, length = 25_000, 200
    write_shard(
        tmp_path,
        "real",
        TokenStream(
            np.arange(documents * length, dtype=np.uint32), np.arange(documents) * length, 0
        ),
    )
    shard = {"documents": documents, "tokens": documents * length, "sha256": {}}
    streams = {}
    for name in ("a", "b"):
        shards = []
        for i in range(200):
            for kind in ("tokens", "starts"):
                (tmp_path / f"{name}-{i}.{kind}.npy").symlink_to(tmp_path / f"real.{kind}.npy")
            shards.append(Shard(f"{name}-{i}", **shard))
        streams[name] = ShardedStream(tmp_path, shards, 0)
    tracemalloc.start()
    loader = Loader(streams, {"a": 3, "b": 1}, 4096, 7)
    assert sum(loader.counts) == 2 * 200 * -(-documents * length // 4096)
    loader.batch(0, 4)
    before = tracemalloc.get_traced_memory()[0]
    for position in range(0, 2_000, 4):
        loader.batch(position, 4)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used < 2_000_000, (
        "a few hundred open maps, and nothing per document: 10 million would take 80 MB"
    )


def test_preparing_needs_no_torch() -> None:
    """Only the loader and what builds it may import it, at the top or in a function."""
    waiting = [f"slm2_minimal.data.{name}" for name in ("shards", "mixture", "shuffle")]
    for module in waiting:
        source = MODULES[module].read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) torch\b", source, re.MULTILINE), module
        waiting += GRAPH[module] - set(waiting)
    assert "slm2_minimal.config" in waiting


@pytest.mark.parametrize(
    "head",
    [
        "{'descr': '<u4', 'fortran_order': False, 'shape': (10**30,), }",
        "{'descr': '<u4', 'fortran_order': False, 'shape': (1000000000000000000000,), }",
        "{'descr': '<u4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<u4', 'fortran_order': False, 'shape': None, }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': [1], 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<u4', 'fortran_order': 7, 'shape': (3,), }",
        "{" * 5000, "3", "", "\0" * 50, "{'descr': ", "[].append(3)",
    ],
)  # fmt: skip
def test_the_head_of_an_array_that_is_none(tmp_path: Path, head: str) -> None:
    shard = write_shard(tmp_path, "s", TokenStream.from_documents([[1, 2]], 0))
    size = len(head).to_bytes(2, "little")
    (tmp_path / shard.files[0]).write_bytes(
        b"\x93NUMPY\x01\x00" + size + head.encode() + b"\0" * 12
    )
    for every_byte in (False, True):
        assert "s.tokens.npy" in data_error(
            lambda every_byte=every_byte: verify(tmp_path, [shard], every_byte=every_byte)  # type: ignore[misc]
        )
    for content in (b"PK\x03\x04" + b"\0" * 50, b"PK\x05\x06" + b"\0" * 18):  # as of an .npz
        (tmp_path / shard.files[0]).write_bytes(content)
        assert "cut short" in data_error(lambda: verify(tmp_path, [shard], every_byte=False))


def test_another_preparation_under_the_same_name_is_not_mixed_up(tmp_path: Path) -> None:
    for text in ([[1, 2, 3]], [[4, 5, 6]]):
        stream = ShardedStream(
            tmp_path, [write_shard(tmp_path, "s", TokenStream.from_documents(text, 0))], 0
        )
        assert stream.sequence(0, 4).input_ids.tolist() == [*text[0], 0]


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    """500 shards and 500 files of keys where 400 files may be open; a map keeps its
    file open as well.
    """
    script = """
import resource, sys
from pathlib import Path
from slm2_minimal.prepare.duplicates import find_duplicates, write_keys
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import ShardedStream, write_shard

resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
folder = Path(sys.argv[1])
streams = [TokenStream.from_documents([[i + 1, i + 2]], 0) for i in range(500)]
shards = [write_shard(folder, f"s-{i}", stream) for i, stream in enumerate(streams)]
stream = ShardedStream(folder, shards, 0)
assert [int(stream.sequence(i, 3).input_ids[0]) for i in range(500)] == list(range(1, 501))
for i in range(500):
    write_keys(folder / f"k-{i}.npy", [(str(i), f"text {i // 2}")], None)
found = find_duplicates([folder / f"k-{i}.npy" for i in range(500)], None, sources=["s"] * 500)
assert sum(int(unit.sum()) for unit in found.removed) == 250
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
