"""Exported files run in llama.cpp: its logits, its top tokens and its ids are ours.

`make test-edge` builds it; without it these tests are skipped.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
import torch
from torch import Tensor

from slm2_minimal.config import ModelConfig
from slm2_minimal.export import gguf
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import nfc
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.tokenizer import Arcade100k, SentencePieceTokenizer
from tests.models import randomised

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python")

TOKENS = 48
F32 = 0  # ggml's number; llama.cpp's own cache is f16
TOY = ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
    bos_token_id=0,
    eos_token_id=0,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "toy": {},
    "grouped": {"num_key_value_heads": 2, "use_qkv_bias": False},
    "half turned": {"partial_rotary_factor": 0.5, "rope_theta": 500.0, "layer_norm_eps": 1e-3},
    "all turned": {"partial_rotary_factor": 1.0},
    "tied": {"tie_word_embeddings": True, "norm_bias": False, "final_norm_bias": False},
}


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Any]:
    """A file in llama.cpp."""
    options = {"n_ctx": 256, "n_threads": 2, "verbose": False} | options
    with closing(llama_cpp.Llama(str(path), **options)) as model:
        yield model


def theirs(path: Path, ids: Tensor) -> Tensor:
    """llama.cpp's logits of each of T tokens: (T, V)."""
    with opened(path, logits_all=True, type_k=F32, type_v=F32) as model:
        model.eval(ids.tolist())
        return torch.from_numpy(np.array(model.scores[: len(ids)]))


@torch.no_grad()
def ours(model: StableLM2, ids: Tensor) -> Tensor:
    return model(ids[None])[0]


def some_ids(vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(1))


def dequantised(path: Path, model: StableLM2) -> StableLM2:
    """The model with its matrices as the file has them, read by the library."""
    names = library.get_tensor_name_map(library.MODEL_ARCH.STABLELM, TOY.num_hidden_layers)
    read = {tensor.name: tensor for tensor in library.GGUFReader(path).tensors}
    other = StableLM2(model.config)
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            found = read[names.get_name(key, (".weight", ".bias"))]
            values = library.dequantize(found.data, found.tensor_type)
            parameter.copy_(torch.from_numpy(np.array(values)).view_as(parameter))
    return other


def hold(path: Path, model: StableLM2) -> None:
    """That the logits are within 1e-4 of ours, and all of the top tokens equal."""
    ids = some_ids(model.config.vocab_size)
    expected, found = ours(model, ids), theirs(path, ids)
    error = (found - expected).abs().max().item()
    print(f"logits of std {expected.std():.2f}: largest difference {error:.1e}")
    assert expected.std() > 1
    assert error < 1e-4
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, tiny: SentencePieceTokenizer, tmp_path: Path) -> None:
    model = randomised(TOY.replace(**VARIANTS[variant]))
    gguf.write(tmp_path / "a.gguf", "a", model, tiny, "f32")
    hold(tmp_path / "a.gguf", model)


@pytest.mark.slow
def test_logits_at_full_width(arcade: Arcade100k, tmp_path: Path) -> None:
    model = randomised(ModelConfig.preset("stablelm-2-1_6b").replace(num_hidden_layers=2))
    gguf.write(tmp_path / "a.gguf", "a", model, arcade, "f32")
    hold(tmp_path / "a.gguf", model)


# What llama.cpp rounds a layer's inputs to, by its type, and how close that comes. A
# value that falls to the other side is a whole step off, which later layers enlarge;
# q4_1 has sums in f16 besides.
ROUNDED = {
    "f16": ("F16", 0.002),
    "bf16": ("BF16", 0.004),
    "q8_0": ("Q8_0", 0.015),
    "q4_0": ("Q8_0", 0.03),
    "q4_1": ("Q8_0", 0.05),
}


@pytest.mark.parametrize("file_type", ROUNDED)
def test_quantised_logits(file_type: str, tiny: SentencePieceTokenizer, tmp_path: Path) -> None:
    """Those of the file's own weights, with the inputs of each layer rounded, too; much
    closer than the type is to the weights that were quantised.
    """
    model, ids = randomised(TOY), some_ids(TOY.vocab_size)
    path = tmp_path / "a.gguf"
    gguf.write(path, "a", model, tiny, file_type)
    found, rounded = theirs(path, ids), dequantised(path, model)
    of_type = (ours(rounded, ids) - ours(model, ids)).norm() / ours(model, ids).norm()

    name, close = ROUNDED[file_type]
    kind = library.GGMLQuantizationType[name]

    def round_inputs(layer: torch.nn.Module, inputs: tuple[Tensor]) -> Tensor:
        values = library.dequantize(library.quantize(inputs[0].numpy(), kind), kind)
        return torch.from_numpy(values).view_as(inputs[0])

    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(round_inputs)
    expected = ours(rounded, ids)
    error = (found - expected).norm() / expected.norm()
    agreement = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    print(f"{file_type}: {error:.5f} from ours, the type {of_type:.5f}, same top {agreement:.3f}")
    assert error < min(close, of_type)
    assert agreement >= 0.9


def test_rotary_dimensions_left_out_are_noticed(
    tiny: SentencePieceTokenizer, tmp_path: Path
) -> None:
    """llama.cpp says nothing, turns whole heads, and gives other logits."""
    model = randomised(TOY)
    path = tmp_path / "a.gguf"
    gguf.write(path, "a", model, tiny, "f32")
    content = path.read_bytes()
    assert content.count(b"stablelm.rope.dimension_count") == 1
    path.write_bytes(content.replace(b"rope.dimension_count", b"rope.dimension_gone_"))
    ids = some_ids(TOY.vocab_size)
    assert (theirs(path, ids) - ours(model, ids)).abs().max() > 0.1
    with pytest.raises(AssertionError):
        hold(path, model)


# Ids


TEXTS = [
    "",
    " ",
    "   two  spaces and\ttabs\t\t end  ",
    "line\nline\r\n\r\n  \n\n\nend\n",
    "1234567890 3.14159 12,000 ½ Ⅷ 一二三 ٣٤",
    "I'll they'RE don't 'S 'tis l'été d’accord",
    "def f(x):\n    return {'a': [x ** 2, \"b\"]}  # comment\n\n\n\tif x != 0: pass",
    "naïve façade Ångström e\u0301 n\u0303 ﬁ \u1e9b\u0323",
    "日本語のテキスト 한국어 中文 العربية עברית हिन्दी ไทย",
    "👩\u200d👩\u200d👧 🏳️\u200d🌈 🤷🏽‍♀️ \U0001f9ff",
    "\x00\x01\x7f\x85\xa0\u2028\u3000\ufeff",
    "<|endoftext|> <|im_start|>user</s><unk><0x41>[PAD100256]",
    "\U0010ffff\ue000\ufffd",
    "a" * 200 + " " * 100 + "!" * 100 + "\n" * 50,
]


def their_ids(model: Any, text: str, special: bool = False) -> list[int]:
    return model.tokenize(text.encode(), add_bos=False, special=special)


@pytest.fixture(scope="module")
def vocabularies(
    arcade: Arcade100k, tiny: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """The two tokenizers in llama.cpp."""
    folder = tmp_path_factory.mktemp("vocabularies")
    narrow = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    for tokenizer, rows in ((arcade, 100_352), (tiny, 1024)):
        ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = StableLM2(TOY.replace(vocab_size=rows, **narrow, **heads, **ids))
        gguf.write(folder / tokenizer.name, "a", model, tokenizer, "q8_0")
    with (
        opened(folder / arcade.name, vocab_only=True) as one,
        opened(folder / tiny.name, vocab_only=True) as other,
    ):
        yield {arcade.name: one, tiny.name: other}


def test_ids_of_the_corpus(tokenizer: Tokenizer, vocabularies: dict[str, Any]) -> None:
    """The seven languages, code and arithmetic."""
    model = vocabularies[tokenizer.name]
    documents = load_corpus()
    assert len({document.language for document in documents}) >= 8
    for document in documents:
        assert their_ids(model, document.text) == tokenizer.encode(document.text), document.id


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_rare_texts(text: str, tokenizer: Tokenizer, vocabularies: dict[str, Any]) -> None:
    model = vocabularies[tokenizer.name]
    text = nfc(text)
    ids = tokenizer.encode(text)
    assert their_ids(model, text) == ids
    if all(len(tokenizer.token_bytes(i)) <= 32 for i in ids):  # else Python's side has no room
        assert model.detokenize(ids, special=True).decode(errors="replace") == text


def test_special_tokens_and_ends(tokenizer: Tokenizer, vocabularies: dict[str, Any]) -> None:
    model = vocabularies[tokenizer.name]
    for name, token_id in tokenizer.special_tokens.items():
        assert their_ids(model, name, special=True) == [token_id]
        assert their_ids(model, name) == tokenizer.encode(name)
    assert model.token_eos() == model.token_bos() == tokenizer.eos_token_id
    assert model.tokenize(b"a") == tokenizer.encode("a")  # nothing is put before a text


def test_what_the_documentation_says_differs(
    arcade: Arcade100k, tiny: SentencePieceTokenizer, vocabularies: dict[str, Any]
) -> None:
    """Where one of these becomes equal, gguf_tokenizer.py says too much."""
    for tokenizer, text in ((arcade, "e\u0301"), (tiny, "e\u0301"), (tiny, "a\u2581b")):
        assert their_ids(vocabularies[tokenizer.name], text) != tokenizer.encode(text), text
