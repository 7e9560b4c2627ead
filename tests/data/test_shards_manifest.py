"""A prepared folder: opened as its manifest says it was written, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from slm2_minimal.config import DataConfig, DataError, RunConfig
from slm2_minimal.data.shards import COUNTS, open_prepared
from slm2_minimal.files import sha256
from slm2_minimal.prepare.run import prepare
from slm2_minimal.text.tokenizer import Arcade100k, SentencePieceTokenizer
from tests.complaints import data_error


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


# What the configuration asks of it


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
