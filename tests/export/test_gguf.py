"""GGUF files by the library's own reader: what stands in them, what is refused, and
that a failure leaves nothing. tests/edge runs them in llama.cpp.
"""

from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
import torch

from slm2_minimal.config import (
    PRESET_DIR,
    CheckpointError,
    ConfigError,
    DataError,
    ModelConfig,
    UserError,
)
from slm2_minimal.export import gguf, hugging_face
from slm2_minimal.export.formats import TYPES
from slm2_minimal.export.formats import export as export_as
from slm2_minimal.inference.quantise import quantise
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.merges import to_chars
from slm2_minimal.text.tokenizer import Arcade100k, SentencePieceTokenizer, Tokenizer
from tests.models import randomised

TINY = ModelConfig(
    vocab_size=1088,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=48,
    partial_rotary_factor=0.5,
    layer_norm_eps=1e-4,
    rope_theta=5000.0,
    bos_token_id=0,
    eos_token_id=0,
)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A model in a folder of Hugging Face's format."""
    randomised(TINY).save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


def fields(path: Path) -> dict[str, Any]:
    reader = library.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in library.GGUFReader(path).tensors}


@pytest.mark.parametrize("file_type", gguf.TYPES)
def test_matrices_have_the_type_and_vectors_are_f32(
    source: str, tmp_path: Path, file_type: str
) -> None:
    out = tmp_path / "out.gguf"
    line = gguf.export(source, out, file_type, "tiny")
    count = TINY.num_parameters()
    assert line == f"{out}: {count:,} parameters in {file_type}, 0.00 GB; tokenizer tiny"
    found = tensors(out)
    state = StableLM2.from_pretrained(source).state_dict()
    assert len(found) == len(state)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
        "model.layers.1.self_attn.k_proj.bias": "blk.1.attn_k.bias",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.0.post_attention_layernorm.bias": "blk.0.ffn_norm.bias",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for ours, theirs in names.items():
        tensor, weight = found[theirs], state[ours].numpy()
        matrix = weight.ndim == 2
        assert tensor.tensor_type.name == (file_type.upper() if matrix else "F32")
        assert list(tensor.shape) == list(weight.shape[::-1])
        values = library.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        steps = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 254, "q4_0": 1 / 8}
        step = steps.get(file_type, 1 / 15) if matrix else 0
        assert np.abs(values - weight).max() <= 1.01 * step * np.abs(weight).max()


def test_the_header_says_how_to_run_it(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    gguf.export(source, out, "q8_0", "tiny")
    found = fields(out)
    expected = {
        "general.architecture": "stablelm",
        "general.name": "source",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "stablelm.vocab_size": 1088,
        "stablelm.context_length": 48,
        "stablelm.embedding_length": 64,
        "stablelm.block_count": 2,
        "stablelm.feed_forward_length": 96,
        "stablelm.attention.head_count": 4,
        "stablelm.attention.head_count_kv": 2,
        "stablelm.attention.layer_norm_epsilon": np.float32(1e-4),
        "stablelm.rope.dimension_count": 8,
        "stablelm.rope.freq_base": 5000.0,
        "stablelm.use_parallel_residual": False,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert {name: found[name] for name in expected} == expected
    for name in ("tokens", "scores", "token_type"):
        assert len(found[f"tokenizer.ggml.{name}"]) == 1088
    assert found["tokenizer.ggml.tokens"][1087] == "[PAD1087]"
    kinds = found["tokenizer.ggml.token_type"]
    assert (kinds[0], kinds[1], kinds[2], kinds[3], kinds[1087]) == (3, 2, 4, 6, 5)


def test_arcade_has_merges_and_names_for_all_rows(arcade: Arcade100k, tmp_path: Path) -> None:
    config = TINY.replace(vocab_size=100_352, bos_token_id=100_257, eos_token_id=100_257)
    out = tmp_path / "out.gguf"
    gguf.write(out, "a", StableLM2(config), arcade, "q4_0", chat_template="{{ messages }}")
    found = fields(out)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    merges = found["tokenizer.ggml.merges"]
    assert len(tokens) == len(kinds) == 100_352
    assert len(merges) == 100_256 - 256  # every token but the single bytes
    assert [a + b for a, b in (merge.split(" ") for merge in merges)] == tokens[256:100_256]
    assert tokens[9707] == to_chars(arcade.token_bytes(9707))
    assert (tokens[100_256], kinds[100_256]) == ("[PAD100256]", 5)
    assert (tokens[100_257], kinds[100_257]) == ("<|endoftext|>", 3)
    assert (kinds[100_255], kinds[100_288], kinds[100_289], kinds[100_351]) == (1, 3, 5, 5)
    assert found["tokenizer.ggml.eos_token_id"] == found["tokenizer.ggml.bos_token_id"] == 100_257
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "stablelm2")
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def test_what_llama_cpp_wants_is_there_where_the_model_has_it_not(
    tiny: SentencePieceTokenizer, tmp_path: Path
) -> None:
    """A head of its own, and the biases of the norms."""
    config = TINY.replace(
        tie_word_embeddings=True, norm_bias=False, final_norm_bias=False, use_qkv_bias=False
    )
    gguf.write(tmp_path / "out", "a", randomised(config), tiny, "f32")
    found = tensors(tmp_path / "out")
    assert np.array_equal(found["output.weight"].data, found["token_embd.weight"].data)
    for name in ("blk.1.attn_norm.bias", "blk.0.ffn_norm.bias", "output_norm.bias"):
        assert not found[name].data.any()
    assert not any("attn_q.bias" in name for name in found)


REFUSED: list[tuple[dict[str, Any], type[UserError], str]] = [
    ({"file_type": "q2_k"}, ConfigError, "type = 'q2_k': unknown; give f32, f16"),
    ({"tokenizer_name": None}, DataError, "names no tokenizer, .* --tokenizer"),
    ({"tokenizer_name": "arcade100k"}, DataError, "has 100289 ids, the model 1088"),
    ({"tokenizer_name": "nowhere.model"}, DataError, "'nowhere.model': No such file"),
    ({"source": "/nowhere/at/all"}, CheckpointError, "no such folder"),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_what_cannot_be_is_refused(
    source: str, tmp_path: Path, changes: dict[str, Any], error: type[UserError], words: str
) -> None:
    good = {"source": source, "out": tmp_path / "out", "tokenizer_name": "tiny"}
    with pytest.raises(error, match=words):
        gguf.export(**(good | changes))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("out", ["source", "source/config.json", "no/out", "x" * 300, "x" * 250])
def test_a_file_that_cannot_be_is_refused(source: str, tmp_path: Path, out: str) -> None:
    with pytest.raises(DataError, match=r"^out = .* (is there already|cannot be written|no such)"):
        gguf.export(source, tmp_path / out, "f32", "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_rows_must_be_whole_blocks(tiny: Tokenizer, tmp_path: Path) -> None:
    model = StableLM2(TINY.replace(intermediate_size=80))
    with pytest.raises(ConfigError, match=r"32 weights, .* the 80 of a row of blk\.0\.ffn_down"):
        gguf.write(tmp_path / "out", "a", model, tiny, "q4_0")
    gguf.write(tmp_path / "out", "a", model, tiny, "bf16")


def test_a_source_of_16_bits_and_many_rows(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bit of it, whatever number of rows is written at a time."""
    model = StableLM2.from_pretrained(source, torch.bfloat16)
    model.save_pretrained(source)
    gguf.export(source, tmp_path / "whole", "f32", "tiny")
    monkeypatch.setattr(gguf, "ROWS", 7)
    gguf.export(source, tmp_path / "parts", "f32", "tiny")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    head = tensors(tmp_path / "whole")["output.weight"].data
    assert np.array_equal(head, model.lm_head.weight.detach().float().numpy())


def test_a_model_that_turns_nothing_is_refused(tiny: Tokenizer, tmp_path: Path) -> None:
    model = StableLM2(TINY.replace(partial_rotary_factor=0.0))
    with pytest.raises(ConfigError, match=r"partial_rotary_factor = 0: llama\.cpp"):
        gguf.write(tmp_path / "out", "a", model, tiny, "f32")


def test_a_weight_beyond_f16_is_refused(source: str, tmp_path: Path) -> None:
    model = StableLM2.from_pretrained(source)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = -1e5
    model.save_pretrained(source)
    with pytest.raises(DataError, match=r"f16 ends at 65,504, output\.weight has 1e\+05"):
        gguf.export(source, tmp_path / "out", "f16", "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]  # it had begun


def test_a_quantised_model_is_refused(tiny: Tokenizer, tmp_path: Path) -> None:
    model = quantise(StableLM2(TINY), bits=8, group=32)
    with pytest.raises(CheckpointError, match=r"_proj.*: GGUF's stablelm has no such tensor"):
        gguf.write(tmp_path / "out", "a", model, tiny, "f32")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_and_the_template_of_a_folder_go_along(source: str, tmp_path: Path) -> None:
    folder, template = tmp_path / "folder", "{{ messages[0] }}"
    gguf.export(source, tmp_path / "plain", "f32", "tiny")
    assert "tokenizer.chat_template" not in fields(tmp_path / "plain")
    (Path(source) / "tokenizer.model").write_bytes((PRESET_DIR / "tiny.model").read_bytes())
    hugging_face.export(source, folder, "float32", template)
    gguf.export(str(folder), tmp_path / "out")
    found = fields(tmp_path / "out")
    assert found["tokenizer.chat_template"] == template
    plain = fields(tmp_path / "plain")
    assert found["tokenizer.ggml.tokens"] == plain["tokenizer.ggml.tokens"]


def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(
    tiny: SentencePieceTokenizer, tmp_path: Path
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(tiny.model)
    model.normalizer_spec.remove_extra_whitespaces = True
    other = SentencePieceTokenizer(model.SerializeToString(), "other")
    with pytest.raises(DataError, match="'other': it adds or removes spaces, and llama"):
        gguf.write(tmp_path / "out", "a", StableLM2(TINY), other, "f32")


def test_a_full_disk_leaves_nothing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library.GGUFWriter, "write_padding", full)
    with pytest.raises(DataError, match=r"^out = .* cannot be written \(No space left on device\)"):
        gguf.export(source, tmp_path / "out", "f32", "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_format_has_its_types(source: str, tmp_path: Path) -> None:
    for file_format, types in TYPES.items():
        assert set(types) >= {"f32", "f16", "bf16"}, file_format
    with pytest.raises(ConfigError, match="--type q8_0: is none of --format hf; give f32, f16"):
        export_as(source, str(tmp_path / "out"), "hf", "q8_0")
    with pytest.raises(ConfigError, match="--tokenizer tiny: goes with --format gguf"):
        export_as(source, str(tmp_path / "out"), "hf", "f32", "tiny")
    export_as(source, str(tmp_path / "out"), "gguf", "q8_0", "tiny")
    assert fields(tmp_path / "out")["general.file_type"] == 7
