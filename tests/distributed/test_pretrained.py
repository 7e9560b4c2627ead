"""Weights alone: from every kind of source, into a model under every strategy."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from slm2_minimal.config import PRESET_DIR, CheckpointError, RunConfig
from slm2_minimal.distributed import checkpoint, pretrained
from slm2_minimal.distributed.parallel import parallelize
from slm2_minimal.distributed.world import World
from slm2_minimal.files import read_json, write_json
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.trainer import Trainer
from tests.complaints import complaint

Make = Callable[..., RunConfig]
Weights = dict[str, Tensor]
ALONE = World(torch.device("cpu"))
MODEL = {
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 4,
    "model.intermediate_size": 68,
    "train.micro_batch_size": 1,
    "train.prompts": [],
}


def filled(world: World, tables: dict[str, Any], source: str) -> tuple[Weights, str | None]:
    """Whole weights of a fresh model after loading, and the tokenizer's name."""
    replica = parallelize(RunConfig.from_dict(tables), world, torch.float32)
    name = pretrained.load_weights(source, replica.model, world)
    weights = {}
    for key, parameter in replica.model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        weights[key] = whole.detach().clone()
    return weights, name


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def weights_of(model: StableLM2) -> Weights:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture
def run_dir(ranks: Any, small_run: Make) -> Path:
    """A run of two ranks with checkpoints of steps 2 and 4; that of 2 is its best."""
    config = small_run(
        "source", **MODEL, **{"train.steps": 4, "train.save_every": 2, "train.validate_every": 100}
    )
    ranks(2, trained, config.to_dict() | {"parallel": {"strategy": "zero1"}})
    folder = Path(config.train.output_dir)
    write_json(folder / checkpoint.BEST, {"step": 2, "mean": 1.0, "losses": {}})
    return folder


def trained(world: World, tables: dict[str, Any]) -> None:
    Trainer.from_config(RunConfig.from_dict(tables), world).run()


PARALLEL: list[tuple[int, dict[str, Any]]] = [
    (2, {"strategy": "ddp"}),
    (2, {"strategy": "zero1"}),
    (2, {"strategy": "fsdp"}),
    (4, {"strategy": "hybrid", "shard_ranks": 2}),
    (4, {"strategy": "fsdp", "tensor_parallel": 2}),
]


def test_into_every_strategy(run_dir: Path, ranks: Any, small_run: Make, tmp_path: Path) -> None:
    """Bitwise, from a checkpoint and from Hugging Face's format in several files."""
    saved = run_dir / "step-00000004"
    model, _ = pretrained.load_model(str(saved))
    hub = tmp_path / "hub"
    model.save_pretrained(hub, max_shard_bytes=50_000)
    assert len(list(hub.glob("*.safetensors"))) > 1
    tables = small_run(**MODEL).to_dict()
    for source, name in ((str(saved), "tiny"), (str(hub), None)):
        weights, tokenizer = filled(ALONE, tables, source)
        assert_same(weights, weights_of(model))
        assert tokenizer == name
        for size, parallel in PARALLEL:
            for weights, tokenizer in ranks(size, filled, tables | {"parallel": parallel}, source):
                assert_same(weights, weights_of(model))
                assert tokenizer == name


def test_of_a_run_the_best_or_else_the_newest(run_dir: Path, small_run: Make) -> None:
    tables = small_run(**MODEL).to_dict()
    both = [weights_of(pretrained.load_model(str(f))[0]) for f in checkpoint.steps(run_dir)]
    assert_same(filled(ALONE, tables, str(run_dir))[0], both[0])
    (run_dir / checkpoint.BEST).unlink()
    assert_same(filled(ALONE, tables, str(run_dir))[0], both[1])


def test_weights_of_16_bits_and_a_tied_head(small_run: Make, tmp_path: Path) -> None:
    """They become the model's own format; a tied head has no entry of its own."""
    config = small_run(**MODEL, **{"model.tie_word_embeddings": True})
    source = StableLM2(config.model).to(torch.bfloat16)
    source.save_pretrained(tmp_path / "hub")
    assert "lm_head.weight" not in load_file(tmp_path / "hub" / "model.safetensors")
    model = StableLM2(config.model)
    pretrained.load_weights(str(tmp_path / "hub"), model, ALONE)
    assert_same(weights_of(model), {k: v.float() for k, v in weights_of(source).items()})
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_table_under_either_name(
    name: str, sharded: bool, small_run: Make, tmp_path: Path
) -> None:
    """safetensors keeps one of the two names; every way in takes both."""
    config = small_run(**MODEL, **{"model.tie_word_embeddings": True})
    source, hub = StableLM2(config.model), tmp_path / "hub"
    source.save_pretrained(hub, max_shard_bytes=50_000 if sharded else 10**9)
    for file in hub.glob("*.safetensors"):
        tensors = {
            name if key == "model.embed_tokens.weight" else key: value
            for key, value in load_file(file).items()
        }
        save_file(tensors, file, metadata={"format": "pt"})
    if sharded:
        index = hub / "model.safetensors.index.json"
        index.write_text(index.read_text().replace("model.embed_tokens.weight", name))

    model = StableLM2(config.model)
    pretrained.load_weights(str(hub), model, ALONE)
    assert_same(weights_of(model), weights_of(source))
    assert_same(weights_of(pretrained.load_model(str(hub))[0]), weights_of(source))


def test_a_folder_with_a_tokenizer_names_itself(small_run: Make, tmp_path: Path) -> None:
    config = small_run(**MODEL)
    StableLM2(config.model).save_pretrained(tmp_path / "hub")
    assert pretrained.load_model(str(tmp_path / "hub"))[1] is None
    shutil.copy(PRESET_DIR / "tiny.model", tmp_path / "hub" / "tokenizer.model")
    assert pretrained.load_model(str(tmp_path / "hub"))[1] == str(tmp_path / "hub")
    model = StableLM2(config.model)
    assert pretrained.load_weights(str(tmp_path / "hub"), model, ALONE) == str(tmp_path / "hub")


def test_the_context_may_be_another(run_dir: Path, small_run: Make) -> None:
    """A longer context is no other architecture."""
    tables = small_run(**MODEL, **{"model.max_position_embeddings": 128}).to_dict()
    expected = pretrained.load_model(str(run_dir))[0]
    assert_same(filled(ALONE, tables, str(run_dir))[0], weights_of(expected))


@pytest.mark.parametrize("kind", ["checkpoint", "hub"])
def test_another_architecture(kind: str, run_dir: Path, small_run: Make, tmp_path: Path) -> None:
    source = run_dir / "step-00000004"
    if kind == "hub":
        pretrained.load_model(str(source))[0].save_pretrained(tmp_path / "hub")
        source = tmp_path / "hub"
    tables = small_run(**MODEL | {"model.num_hidden_layers": 3}).to_dict()
    message = complaint(lambda: filled(ALONE, tables, str(source)), CheckpointError)
    assert message == (
        f"model.num_hidden_layers = 3: the checkpoint {str(source)!r} has 2; use the same model"
    )


def refused(world: World, tables: dict[str, Any], source: str) -> str:
    try:
        filled(world, tables, source)
    except CheckpointError as error:
        return str(error)
    return "nothing"


def test_what_is_damaged_or_missing(
    run_dir: Path, ranks: Any, small_run: Make, tmp_path: Path
) -> None:
    """In one line, on every rank."""
    tables = small_run(**MODEL).to_dict() | {"parallel": {"strategy": "fsdp"}}
    hub, saved = tmp_path / "hub", run_dir / "step-00000004"
    pretrained.load_model(str(saved))[0].save_pretrained(hub)
    weights = hub / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    shard = next(saved.glob("shard-00002*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    for source, part in (
        (hub, f"checkpoint = {str(hub)!r}: cannot be read ("),
        (saved, f"{shard.name} is missing or altered"),
        (tmp_path / "nothing", "no such folder"),
    ):
        for message in ranks(2, refused, tables, str(source)):
            assert part in message
            assert len(message.splitlines()) == 1


@pytest.mark.parametrize("kind", ["run", "hub"])
def test_a_model_larger_than_the_machine(
    kind: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused in a line before it is built."""
    model, _ = pretrained.load_model(str(run_dir))
    source = run_dir
    if kind == "hub":
        source = tmp_path / "hub"
        model.save_pretrained(source)
    memory = 4 * model.config.num_parameters()
    monkeypatch.setattr("slm2_minimal.distributed.device.total_memory", lambda device: memory)
    pretrained.load_model(str(source))
    memory -= 1
    message = complaint(lambda: pretrained.load_model(str(source)))
    assert re.match(rf"model = '{source}': needs .* use a machine with more memory$", message)


def test_a_state_of_another_run_is_not_touched(run_dir: Path, small_run: Make) -> None:
    """Reading weights alone writes nothing."""
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    filled(ALONE, small_run(**MODEL).to_dict(), str(run_dir))
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    assert read_json(run_dir / checkpoint.BEST)["step"] == 2
