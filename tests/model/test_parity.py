"""The model beside transformers' StableLmForCausalLM, with every parameter randomised.

Its own initialisation sets biases to zero, which would hide a dropped one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from transformers import StableLmConfig, StableLmForCausalLM

from slm2_minimal.config import CheckpointError, ModelConfig
from slm2_minimal.model.transformer import StableLM2

SMALL = ModelConfig(
    vocab_size=101,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=0,
)
SHAPES = {
    "report": {},
    "grouped keys": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "no qkv bias": {"use_qkv_bias": False},
    "half rotary": {"partial_rotary_factor": 0.5},
    "full rotary": {"partial_rotary_factor": 1.0},
    "other base": {"rope_theta": 500.0},
    "other epsilon": {"layer_norm_eps": 1e-2},
    "tied": {"tie_word_embeddings": True},
    "one layer": {"num_hidden_layers": 1},
}


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model


def ids(rows: int = 2, length: int = 33, seed: int = 1) -> torch.Tensor:
    return torch.randint(
        0, SMALL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_ours_saved_is_theirs_loaded(changes: dict, tmp_path: Path) -> None:
    model = randomised(StableLM2(SMALL.replace(**changes)))
    model.save_pretrained(tmp_path)
    theirs = StableLmForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(model(ids()), theirs(ids()).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_theirs_saved_is_ours_loaded(changes: dict, tmp_path: Path) -> None:
    config = SMALL.replace(**changes)
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "layer_norm_eps",
        "use_qkv_bias",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    )
    rope = {
        "rope_type": "default",
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": config.partial_rotary_factor,
    }
    theirs = randomised(
        StableLmForCausalLM(
            StableLmConfig(**{n: getattr(config, n) for n in names}, rope_parameters=rope)
        ),
        seed=2,
    )
    theirs.save_pretrained(tmp_path)
    model = StableLM2.from_pretrained(tmp_path)
    assert model.config == config
    torch.testing.assert_close(model(ids()), theirs(ids()).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [SHAPES["report"], SHAPES["grouped keys"], SHAPES["tied"]],
    ids=["report", "grouped keys", "tied"],
)
def test_gradients_agree(changes: dict, tmp_path: Path) -> None:
    model = randomised(StableLM2(SMALL.replace(**changes)))
    model.save_pretrained(tmp_path)
    theirs = StableLmForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for logits in (model(ids()), theirs(ids()).logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids(seed=3).flatten()).backward()
    others = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, others[name].grad, atol=1e-5, rtol=1e-3, msg=name
        )


def test_old_config_fields_are_read(tmp_path: Path) -> None:
    """Files written before `rope_parameters` existed, the released one among them, keep
    rotary fields at the top level.
    """
    model = randomised(StableLM2(SMALL.replace(rope_theta=77.0, partial_rotary_factor=0.5)))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config["auto_map"] = {"unknown": "keys are welcome"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert StableLM2.from_pretrained(tmp_path).config == model.config


def test_shards_load_on_both_sides(tmp_path: Path) -> None:
    model = randomised(StableLM2(SMALL))
    model.save_pretrained(tmp_path, max_shard_bytes=60_000)
    files = list(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 70_000 for file in files)
    again, theirs = (
        StableLM2.from_pretrained(tmp_path),
        StableLmForCausalLM.from_pretrained(tmp_path, dtype=torch.float32),
    )
    assert torch.equal(again(ids()), model(ids()))
    torch.testing.assert_close(theirs(ids()).logits, model(ids()), atol=1e-5, rtol=1e-4)
    model.save_pretrained(
        tmp_path
    )  # one file now: the shards and their index must not be read any more
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_missing_norm_biases_are_saved_as_zeros(tmp_path: Path) -> None:
    model = randomised(StableLM2(SMALL.replace(norm_bias=False)))
    model.save_pretrained(tmp_path)
    theirs = StableLmForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(model(ids()), theirs(ids()).logits, atol=1e-5, rtol=1e-4)


def test_full_size_has_the_released_keys_and_count() -> None:
    with torch.device("meta"):
        model = StableLM2(ModelConfig.preset("stablelm-2-1_6b"))
    state = model.state_dict()
    layer = [
        "input_layernorm.weight",
        "input_layernorm.bias",
        "post_attention_layernorm.weight",
        "post_attention_layernorm.bias",
        *(f"self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")),
        "self_attn.o_proj.weight",
        *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
    ]
    outside = [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.norm.bias",
    ]
    assert set(state) == set(outside) | {
        f"model.layers.{i}.{name}" for i in range(24) for name in layer
    }
    assert len(state) == 340
    assert (
        sum(value.numel() for value in state.values())
        == 1_644_515_328
        == model.config.num_parameters()
    )


@pytest.mark.parametrize(
    ("norm_bias", "final_norm_bias", "count"),
    [(False, True, 1_644_417_024), (False, False, 1_644_414_976)],
)
def test_counts_of_the_model_card(norm_bias: bool, final_norm_bias: bool, count: int) -> None:
    config = ModelConfig.preset("stablelm-2-1_6b").replace(
        norm_bias=norm_bias, final_norm_bias=final_norm_bias
    )
    with torch.device("meta"):
        model = StableLM2(config)
    assert sum(p.numel() for p in model.parameters()) == count == config.num_parameters()


REFUSED = {
    "qk_layernorm": True,
    "use_parallel_residual": True,
    "hidden_act": "gelu",
    "model_type": "llama",
    "rope_scaling": {"type": "linear", "factor": 2.0},
}


@pytest.mark.parametrize(("field", "value"), REFUSED.items(), ids=REFUSED.keys())
def test_another_function_is_refused(field: str, value: object, tmp_path: Path) -> None:
    StableLM2(SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=field):
        StableLM2.from_pretrained(tmp_path)


def test_scaled_rotary_is_refused(tmp_path: Path) -> None:
    StableLM2(SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="rope_parameters"):
        StableLM2.from_pretrained(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        StableLM2.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        StableLM2.from_pretrained(tmp_path)
    StableLM2(SMALL).save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        StableLM2.from_pretrained(tmp_path)
    StableLM2(SMALL.replace(hidden_size=128)).save_pretrained(tmp_path / "wide")
    (tmp_path / "model.safetensors").write_bytes(
        (tmp_path / "wide" / "model.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match="shape"):
        StableLM2.from_pretrained(tmp_path)
    StableLM2(SMALL.replace(num_hidden_layers=2)).save_pretrained(tmp_path / "short")
    (tmp_path / "model.safetensors").write_bytes(
        (tmp_path / "short" / "model.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match="missing"):
        StableLM2.from_pretrained(tmp_path)


def test_hub_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match="neither a local folder nor to be had from the Hub"
    ) as error:
        StableLM2.from_pretrained("nobody/nothing-of-this-name")
    assert "\n" not in str(error.value)


# Folders as others write them


def folder_with(
    folder: Path, edit: Callable[[dict], object] = dict, **changes: Any
) -> tuple[Path, StableLM2]:
    """A saved model whose config.json was edited afterwards."""
    model = randomised(StableLM2(SMALL.replace(**changes)))
    assert isinstance(model, StableLM2)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model


def agrees_with_transformers(folder: Path) -> ModelConfig:
    model = StableLM2.from_pretrained(folder)
    theirs = StableLmForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(model(ids()), theirs(ids()).logits, atol=1e-5, rtol=1e-4)
    return model.config


ROPE = {"rope_theta": 77.0, "partial_rotary_factor": 0.5}
FOREIGN: dict[str, tuple[Callable[[dict], object], dict[str, Any]]] = {
    "bos null": (lambda c: c.update(bos_token_id=None), {"bos_token_id": None}),
    "bos absent": (lambda c: c.pop("bos_token_id"), {"bos_token_id": 0}),
    "eos null": (lambda c: c.update(eos_token_id=None), {"eos_token_id": None}),
    "eos a list": (lambda c: c.update(eos_token_id=[5, 1]), {"eos_token_id": 5}),
    "eos an empty list": (lambda c: c.update(eos_token_id=[]), {"eos_token_id": None}),
    "plain rope_scaling": (
        lambda c: (
            c.pop("rope_parameters"),
            c.update(rope_scaling={"rope_type": "default"}, **ROPE),
        ),
        ROPE,
    ),
    "its own head_dim": (lambda c: c.update(head_dim=16), {}),
}


@pytest.mark.parametrize(("edit", "fields"), FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_fields_are_read(
    edit: Callable[[dict], object], fields: dict[str, Any], tmp_path: Path
) -> None:
    folder, _ = folder_with(tmp_path, edit)
    config = agrees_with_transformers(folder)
    assert {name: getattr(config, name) for name in fields} == fields


def test_absent_qkv_biases_are_none(tmp_path: Path) -> None:
    folder, _ = folder_with(tmp_path, lambda c: c.pop("use_qkv_bias"), use_qkv_bias=False)
    assert not agrees_with_transformers(folder).use_qkv_bias


def test_old_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    folder, model = folder_with(tmp_path)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(1) for i in range(3)}
    save_file(model.state_dict() | buffers, folder / "model.safetensors", {"format": "pt"})
    agrees_with_transformers(folder)


def test_tied_tables_are_stored_under_either_name(tmp_path: Path) -> None:
    folder, model = folder_with(tmp_path, tie_word_embeddings=True)
    save_model(model, str(folder / "model.safetensors"), {"format": "pt"})
    agrees_with_transformers(folder)
    state = {key: value for key, value in model.state_dict().items() if "layers" in key}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"^lm_head\.weight: shape missing"):
        StableLM2.from_pretrained(folder)


CRAFTED: dict[str, tuple[str, object, str]] = {
    "no weight_map": ("model.safetensors.index.json", {"metadata": {}}, "weight_map"),
    "weight_map null": ("model.safetensors.index.json", {"weight_map": None}, "weight_map"),
    "a list of files": ("model.safetensors.index.json", {"weight_map": {"a": ["x"]}}, "weight_map"),
    "outside": ("model.safetensors.index.json", {"weight_map": {"a": "../x"}}, "beside it"),
    "NUL": ("model.safetensors.index.json", {"weight_map": {"a": "x\0"}}, "beside it"),
    "a long name": ("model.safetensors.index.json", {"weight_map": {"a": "x" * 300}}, "missing"),
    "an index list": ("model.safetensors.index.json", [], "not a JSON object"),
    "linear rope, old key": ("", {"rope_parameters": {"type": "linear"}}, "rope_parameters.type"),
    "rope of both keys": (
        "", {"rope_scaling": {"rope_type": "default", "type": "dynamic"}}, "rope_scaling",
    ),
    "rope a string": ("", {"rope_parameters": "default"}, "rope_parameters cannot be read"),
    "rope type a list": ("", {"rope_parameters": {"rope_type": [1]}}, r"rope_type = \[1\]"),
    "another head_dim": ("", {"head_dim": 32}, "head_dim = 32 .* computes 16 only"),
    "quantised": ("", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "ten million layers": ("", {"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000"),
    "a huge table": ("", {"vocab_size": 2**24, "hidden_size": 2**20}, "any machine"),
    "no heads": ("", {"num_attention_heads": 0}, "num_attention_heads = 0"),
    "text for a number": ("", {"vocab_size": "many"}, "vocab_size = 'many'"),
    "NaN": ("", {"layer_norm_eps": float("nan")}, "layer_norm_eps = nan"),
    "eos of text": ("", {"eos_token_id": ["end"]}, "eos_token_id = 'end'"),
    "a theta of text": ("", {"rope_parameters": {"rope_theta": {}}}, "rope_theta = {}"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), CRAFTED.values(), ids=CRAFTED.keys())
def test_crafted_folders_are_refused(
    name: str, content: object, message: str, tmp_path: Path
) -> None:
    folder, _ = folder_with(tmp_path, lambda c: c.update(content) if name == "" else None)
    if name:
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as error:
        StableLM2.from_pretrained(folder)
    assert str(folder) in str(error.value) or name in str(error.value)


@pytest.mark.parametrize("text", ["[" * 5000, '{"a": ' + "9" * 5000 + "}", "{", "", "\udcff"])
def test_a_config_that_is_no_json(text: str, tmp_path: Path) -> None:
    folder, _ = folder_with(tmp_path)
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="not valid JSON"):
        StableLM2.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    folder, model = folder_with(tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: holds"):
        StableLM2.from_pretrained(folder)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    folder, model = folder_with(tmp_path)
    state = {key: value.to(torch.int8) for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="no finite decimal number"):
        StableLM2.from_pretrained(folder)
