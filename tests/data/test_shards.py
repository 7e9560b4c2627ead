"""Shards and their manifest: what was written is what is read, and whatever is not as
it was written is said before training.
"""

import json
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from slm2_minimal.config import DataConfig, DataError, RunConfig
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import (
    COUNTS,
    Shard,
    ShardedStream,
    open_prepared,
    verify,
    write_shard,
)
from slm2_minimal.files import sha256
from slm2_minimal.prepare.run import prepare
from slm2_minimal.text.tokenizer import Arcade100k, SentencePieceTokenizer
from tests.complaints import data_error
from tests.test_imports import GRAPH, MODULES

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [16, 17, 18]]


@pytest.fixture
def prepared(tmp_path: Path) -> DataConfig:
    sources = {
        "de": {"languages": ["de"], "domains": ["recipes"]},
        "code": {"languages": ["code"], "weight": 2},
    }
    run = RunConfig.load(
        "tiny",
        {"data.sources": sources, "data.prepared": str(tmp_path / "out"), "prepare.workers": 1},
    )
    prepare(run)
    return run.data


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


# What is not as it was written

Damage = Callable[[Path], Any]


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        (
            "code-000000.tokens.npy",
            altered,
            "code-000000.tokens.npy was altered: its SHA-256 is not the manifest's",
        ),
        ("code-000000.starts.npy", altered, "code-000000.starts.npy was altered"),
        (
            "de-000000.tokens.npy",
            lambda p: p.write_bytes(p.read_bytes()[:-4]),
            "de-000000.tokens.npy is missing or cut short",
        ),
        (
            "de-000000.tokens.npy",
            lambda p: p.unlink(),
            "de-000000.tokens.npy is missing or cut short",
        ),
        (
            "de-000000.tokens.npy",
            lambda p: p.write_bytes(b""),
            "de-000000.tokens.npy is missing or cut short",
        ),
        (
            "de-000000.tokens.npy",
            lambda p: np.save(p, np.zeros(3, np.uint32)),
            "holds (3,) of uint32, not (",
        ),
        (
            "held_out.000.tokens.npy",
            lambda p: np.save(p, np.load(p).astype(np.int64)),
            "of int64, not (",
        ),
        ("token_counts.safetensors", altered, "token_counts.safetensors is missing or altered"),
        (
            "token_counts.safetensors",
            lambda p: p.unlink(),
            "token_counts.safetensors is missing or altered",
        ),
        ("manifest.json", lambda p: p.write_text(p.read_text()[:-20]), "manifest.json is damaged"),
        (
            "manifest.json",
            lambda p: p.unlink(),
            "manifest.json: No such file or directory; run slm2 prepare",
        ),
        (
            "manifest.json",
            lambda p: p.write_text(p.read_text().replace('"format": 1', '"format": 2')),
            "has format 2, this version reads 1",
        ),
    ],
)
def test_damage_is_found_on_opening(
    prepared: DataConfig, tiny: SentencePieceTokenizer, name: str, damage: Damage, complaint: str
) -> None:
    open_prepared(prepared, tiny)
    damage(Path(prepared.prepared or "") / name)
    with pytest.raises(DataError) as caught:
        open_prepared(prepared, tiny)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


MISSING = object()


@pytest.mark.parametrize("value", [MISSING, None, 3, "x", [], {}, [3], {"x": 3}, 1e400, "\0"])
@pytest.mark.parametrize(
    "place",
    [
        ["format"], ["tokenizer"], ["tokenizer", "name"], ["tokenizer", "fingerprint"], ["read"],
        ["read", "sources"], ["read", "sources", "de"], ["read", "validation_percent"],
        ["sources"], ["sources", "de"], ["sources", "de", 0], ["sources", "de", 0, "name"],
        ["sources", "de", 0, "documents"], ["sources", "de", 0, "tokens"],
        ["sources", "de", 0, "sha256"], ["held_out"], ["held_out", "de"], ["token_counts"],
    ],
    ids=lambda place: ".".join(map(str, place)),
)  # fmt: skip
def test_a_manifest_is_checked_as_a_whole(
    manifest: tuple[DataConfig, dict[str, Any]],
    tiny: SentencePieceTokenizer,
    place: list[Any],
    value: Any,
) -> None:
    """Whatever one field is replaced by, the folder is refused in one line, or opened
    where the value is right.
    """
    config, content = manifest
    content = json.loads(json.dumps(content))
    table = content
    for key in place[:-1]:
        table = table[key]
    if value is MISSING:
        del table[place[-1]]
    else:
        table[place[-1]] = value
    Path(config.prepared or "", "manifest.json").write_text(json.dumps(content))
    harmless = (
        (["held_out"], {}), (["held_out", "de"], MISSING), (["tokenizer", "name"], "x"),
        (["tokenizer", "name"], "\0"), (["sources", "de"], []), (["sources", "de", 0], MISSING),
    )  # fmt: skip
    if (place, value) in harmless:
        open_prepared(config, tiny)
    else:
        data_error(lambda: open_prepared(config, tiny))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, dict[str, Any]]:
    """A prepared folder whose manifest a test may overwrite, and what that held."""
    folder = tmp_path_factory.mktemp("manifest") / "out"
    sources = {"de": {"languages": ["de"]}}
    options = {"data.sources": sources, "data.prepared": str(folder), "prepare.workers": 1}
    run = RunConfig.load("tiny", options)
    prepare(run)
    return run.data, json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("name", ["../{}", "{folder}/{}", "a/../{}", "", "a\0b"])
def test_no_name_leads_out_of_the_folder(
    manifest: tuple[DataConfig, dict[str, Any]], tiny: SentencePieceTokenizer, name: str
) -> None:
    config, content = manifest
    content = json.loads(json.dumps(content))
    folder = Path(config.prepared or "")
    shard = content["sources"]["de"][0]
    for file in Path(folder).glob(f"{shard['name']}.*.npy"):
        (folder.parent / file.name).write_bytes(file.read_bytes())
    shard["name"] = name.format(shard["name"], folder=folder.parent)
    (folder / "manifest.json").write_text(json.dumps(content))
    message = data_error(lambda: open_prepared(config, tiny))
    assert message.endswith(
        "manifest.json is damaged; copy that file again, or prepare another folder"
    )


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, "{}", "[]", "null", "\udce9", ""])
def test_a_manifest_that_is_none(
    manifest: tuple[DataConfig, dict[str, Any]], tiny: SentencePieceTokenizer, content: str
) -> None:
    path = Path(manifest[0].prepared or "", "manifest.json")
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "is damaged" in data_error(lambda: open_prepared(manifest[0], tiny))


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


@pytest.mark.parametrize(
    "counts",
    [
        {"de": np.zeros(3, np.int64)},
        {"de": np.zeros(1024)},
        {"de": np.zeros((1024, 1), np.int64)},
        b"x",
    ],
    ids=["short", "fractions", "matrix", "no safetensors"],
)
def test_counts_that_are_none(
    prepared: DataConfig, tiny: SentencePieceTokenizer, counts: Any
) -> None:
    """Though their digest is the manifest's."""
    folder = Path(prepared.prepared or "")
    content = counts if isinstance(counts, bytes) else safetensors.numpy.save(counts)
    (folder / COUNTS).write_bytes(content)
    table = json.loads((folder / "manifest.json").read_text())
    table["token_counts"] = sha256(folder / COUNTS)
    (folder / "manifest.json").write_text(json.dumps(table))
    assert f"{COUNTS} is missing or altered" in data_error(lambda: open_prepared(prepared, tiny))


def test_sizes_alone_can_be_checked(prepared: DataConfig, tiny: SentencePieceTokenizer) -> None:
    quick = prepared.replace(verify="sizes")
    altered(Path(prepared.prepared or "") / "code-000000.tokens.npy")
    open_prepared(quick, tiny)
    path = Path(prepared.prepared or "") / "code-000000.tokens.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cut short"):
        open_prepared(quick, tiny)


def test_another_tokenizer_is_refused(prepared: DataConfig, arcade: Arcade100k) -> None:
    with pytest.raises(
        DataError,
        match=(
            r"^data\.tokenizer = 'arcade100k': .* was tokenised with another one, 'tiny'"
            r" \([0-9a-f]{16}, not "
        ),
    ):
        open_prepared(prepared.replace(tokenizer="arcade100k"), arcade)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"sources": {"fr": {"languages": ["fr"]}}},
            r"data\.sources\.fr: .* has only de, code; prepare another folder with it",
        ),
        (
            {"sources": {"de": {"languages": ["de"]}}},
            r"data\.sources\.de = .*: .* was prepared from .*recipes",
        ),
        ({"validation_percent": 20}, r"data\.validation_percent = 20: .* was prepared with 10"),
    ],
)
def test_other_sources_are_refused(
    prepared: DataConfig, tiny: SentencePieceTokenizer, changes: dict[str, Any], complaint: str
) -> None:
    config = RunConfig.from_dict({"data": json.loads(json.dumps(vars_of(prepared))) | changes}).data
    with pytest.raises(DataError, match=complaint):
        open_prepared(config, tiny)


def vars_of(config: DataConfig) -> dict[str, Any]:
    return RunConfig(data=config).to_dict()["data"]


def test_weights_epochs_and_a_part_of_the_sources_are_free(
    prepared: DataConfig, tiny: SentencePieceTokenizer
) -> None:
    sources = vars_of(prepared)["sources"]
    sources["de"] |= {"weight": 0.3, "max_epochs": 2.0}
    config = RunConfig.from_dict(
        {"data": vars_of(prepared) | {"sources": {"de": sources["de"]}}}
    ).data
    found = open_prepared(config, tiny)
    assert list(found.streams) == ["de"]
    assert found.streams["de"].num_tokens == found.streams["de"].shards[0].tokens > 0


@pytest.mark.parametrize("field", ["text_field", "languages", "domains"])
def test_how_a_source_is_read_is_part_of_what_it_is(
    prepared: DataConfig, tiny: SentencePieceTokenizer, field: str
) -> None:
    sources = vars_of(prepared)["sources"]
    sources["de"][field] = "body" if field == "text_field" else ["x"]
    config = RunConfig.from_dict({"data": vars_of(prepared) | {"sources": sources}}).data
    with pytest.raises(DataError, match=r"^data\.sources\.de = .*: .* was prepared from "):
        open_prepared(config, tiny)


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
