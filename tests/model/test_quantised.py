"""Layers of 8 and 4 bits: their bits by hand, both ways to multiply, their files."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slm2_minimal.config import CheckpointError, ConfigError
from slm2_minimal.distributed.pretrained import load_model, load_weights
from slm2_minimal.distributed.world import World
from slm2_minimal.files import read_json, write_json
from slm2_minimal.inference.generate import generate
from slm2_minimal.inference.quantise import quantise
from slm2_minimal.model import int_kernels, quantised
from slm2_minimal.model.quantised import (
    Quantisation,
    QuantisedLinear,
    pack_nibbles,
    quantised_layers,
    unpack_nibbles,
)
from slm2_minimal.model.transformer import StableLM2
from tests.complaints import complaint
from tests.models import TINY

SIZES = TINY.replace(vocab_size=128, hidden_size=64, intermediate_size=192)
IDS = torch.arange(40).view(2, 20)
KINDS = [(8, None, True), (8, 32, True), (8, 64, False), (4, 32, True), (4, 64, False)]


@pytest.fixture(scope="module")
def model() -> StableLM2:
    torch.manual_seed(0)
    model = StableLM2(SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def layer_of(bits: int, group: int | None, symmetric: bool) -> QuantisedLinear:
    """128 rows of 64 columns, of random codes."""
    generator = torch.Generator().manual_seed(bits)
    settings = Quantisation(bits, group, symmetric)
    highest = 2 ** (bits - 1)
    codes = torch.randint(-highest, highest, (128, 64), generator=generator, dtype=torch.int8)
    shape = (128, settings.groups(64))
    scale = torch.rand(shape, generator=generator) + 0.5
    offset = torch.randn(shape, generator=generator)
    bias = torch.randn(128, generator=generator)
    return QuantisedLinear.of(codes, scale, offset, bias, settings)


def test_nibbles_by_hand() -> None:
    """The first code in the low four bits, each plus 8."""
    codes = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    packed = pack_nibbles(codes)
    assert packed.tolist() == [[0xF0, 0x78]]
    assert torch.equal(unpack_nibbles(packed), codes)


def test_weights_by_hand() -> None:
    """scale * code + offset, each group with its own."""
    codes = torch.tensor([[1, -2, 3, -8]], dtype=torch.int8)
    settings = Quantisation(4, 2, symmetric=False)
    layer = QuantisedLinear.of(
        codes, torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, -1.0]]), None, settings
    )
    assert layer.weights().tolist() == [[1.5, 0.0, 5.0, -17.0]]
    assert layer(torch.eye(4)).flatten().tolist() == [1.5, 0.0, 5.0, -17.0]
    assert layer.codes.nbytes == 2


@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
def test_the_kernel_computes_the_same(bits: int, group: int | None, symmetric: bool) -> None:
    """Up to bf16, to which it rounds what goes in and comes out; also of a few rows, of
    many, and after the codes were laid out and put back.
    """
    layer = layer_of(bits, group, symmetric)
    weights, stored = layer.weights(), {k: v.clone() for k, v in layer.state_dict().items()}
    for rows in (1, 3, 70):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        expected = x @ weights.T
        assert torch.allclose(layer.plain_product(x), expected, rtol=1e-5, atol=1e-3)
        error = (layer.kernel_product(x) - expected).norm() / expected.norm()
        assert 0 < error < 2**-7
        assert torch.equal(layer.weights(), weights), "read as the kernel has them"
    assert layer.arranged
    for name, value in layer.state_dict().items():
        assert torch.equal(value, stored[name])
        assert value.dtype == stored[name].dtype


@pytest.mark.parametrize("rows", [0, 3, 2**31])
def test_either_way_by_the_number_of_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(8, None, True)
    layer.kernel_rows = rows
    used = []
    for way in ("kernel_product", "plain_product"):
        own = getattr(layer, way)
        monkeypatch.setattr(layer, way, lambda x, w=way, own=own: (used.append(w), own(x))[1])
    for number in (1, 3, 4):
        layer(torch.ones(number, 64))
    assert used == ["kernel_product" if n <= rows else "plain_product" for n in (1, 3, 4)]


def test_the_choice_is_measured_and_said_once(
    model: StableLM2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quantised, "_measured", {})
    few = quantise(model, 4, 32)
    with caplog.at_level(logging.INFO, "slm2_minimal"):
        few(IDS)
        quantise(model, 4, 32)(IDS)
    (line,) = [each.getMessage() for each in caplog.records if "kernel takes" in each.getMessage()]
    _, rows = quantised._measured[4, 32, torch.float32, "cpu", quantised.KERNEL]
    assert f"{rows:,} rows" in line or "any rows" in line
    assert {layer.kernel_rows for _, layer in quantised_layers(few)} == {rows}


@pytest.mark.parametrize(
    ("times", "rows"),
    [
        ((1.0, 2.0, 100.0, 36.0), 1),  # it falls behind by a millisecond a row
        ((1.0, 64.0, 100.0, 100.0), 64),  # even at 64 rows
        ((2.0, 1.0, 1.0, 9.0), 0),
        ((1.0, 2.0, 1.0, 9.0), 2**31),
    ],
)
def test_the_crossing_by_hand(
    times: tuple[float, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of both ways for one row, then for 64."""
    kernel_one, plain_one, kernel_many, plain_many = times
    measured = iter([kernel_one, plain_one, kernel_many, plain_many])
    monkeypatch.setattr(int_kernels, "milliseconds", lambda call, x: next(measured))
    found = int_kernels.crossing(lambda x: x, lambda x: x, torch.ones(1, 4))
    assert found == (rows, kernel_one, plain_one)


def test_what_the_kernels_cannot_do() -> None:
    assert not int_kernels.takes(4, 48, 128), "groups"
    assert not int_kernels.takes(4, 32, 100), "rows"
    assert int_kernels.takes(4, 32, 128)
    odd = quantise(StableLM2(SIZES.replace(vocab_size=99)), 4, 16)
    assert odd(IDS).shape == (2, 20, 99)


@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
def test_saved_and_loaded(
    bits: int, group: int | None, symmetric: bool, model: StableLM2, tmp_path: Path
) -> None:
    """Bit for bit, before it was used and after."""
    few = quantise(model, bits, group, symmetric=symmetric)
    for folder in (tmp_path / "fresh", tmp_path / "used"):
        few.save_pretrained(folder)
        again = StableLM2.from_pretrained(folder)
        for name, value in few.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
            assert again.state_dict()[name].dtype == value.dtype, name
        with torch.no_grad():
            assert torch.equal(again(IDS), few(IDS))
    config = read_json(tmp_path / "used" / "config.json")["quantization_config"]
    assert config == {
        "quant_method": "slm2", "version": 1, "bits": bits, "group": group,
        "symmetric": symmetric, "method": "rtn",
    }  # fmt: skip


def test_a_file_has_the_bits_it_promises(model: StableLM2, tmp_path: Path) -> None:
    quantise(model, 4, 32).bfloat16().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    weights = sum(p.numel() for n, p in model.named_parameters() if "proj.w" in n or "head" in n)
    integers = [v for name, v in stored.items() if name.endswith(("codes", "scale"))]
    assert sum(value.nbytes for value in integers) * 8 == weights * 4.5
    assert Quantisation(4, 32).bits_per_weight == 4.5
    assert Quantisation(4, 32, symmetric=False).bits_per_weight == 5.0
    assert Quantisation(8, 32).bits_per_weight == 8.5


def test_another_format_changes_no_scale(model: StableLM2) -> None:
    few = quantise(model, 4, 32, symmetric=False)
    few(IDS)
    before = few.lm_head.weights()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        few.to(dtype)
        assert torch.equal(few.lm_head.weights(), before)
        assert few(IDS).dtype == dtype


def test_it_writes(model: StableLM2) -> None:
    """With its own head and cache, in fp32 and bf16."""
    for few in (quantise(model, 8, None), quantise(model, 4, 32).bfloat16()):
        out = generate(few, IDS[:, :5], 10, temperature=0)
        logits = few(out[:, :-1])
        assert out.shape == (2, 15)
        agree = logits[:, 4:].argmax(-1) == out[:, 5:]
        assert agree.float().mean() > 0.8, "up to ties in the rounding of the kernel"


def test_a_tied_head_is_one_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tied = StableLM2(SIZES.replace(tie_word_embeddings=True))
    few = quantise(tied, 8, None)
    few.save_pretrained(tmp_path)
    again = StableLM2.from_pretrained(tmp_path)
    assert torch.equal(again(IDS), few(IDS))
    assert torch.equal(again.model.embed_tokens.weight, tied.model.embed_tokens.weight)


# What is refused

OURS = {"quant_method": "slm2", "version": 1, "bits": 8, "group": None, "symmetric": True}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method = 'gptq'"),
        ({}, "quant_method = None"),
        ("awq", "quant_method = 'awq'"),
        ([], "quant_method = []"),
        (OURS | {"version": 2}, "not in the format 'slm2' 1"),
        (OURS | {"bits": 5}, "bits = 5: must be 8 or 4"),
        (OURS | {"bits": "many"}, "quantization_config.bits cannot be read"),
        (OURS | {"group": 7}, "group = 7: does not divide"),
        (OURS | {"group": -1}, "group = -1"),
        (OURS | {"method": "guess"}, "method = 'guess'"),
        (OURS | {"bits": 4}, "lm_head.codes: shape (128, 64)"),
        (OURS | {"group": 32}, "lm_head.scale: shape (128, 1)"),
        (OURS | {"symmetric": False}, "offset: shape missing"),
    ],
)
def test_a_foreign_folder(content: Any, words: str, model: StableLM2, tmp_path: Path) -> None:
    quantise(model, 8, None).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", config | {"quantization_config": content})
    message = complaint(lambda: StableLM2.from_pretrained(tmp_path))
    assert words in message


def test_damaged_codes(model: StableLM2, tmp_path: Path) -> None:
    quantise(model, 8, None).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    save_file(stored | {"lm_head.codes": stored["lm_head.codes"].view(torch.uint8)}, file)
    message = complaint(lambda: load_model(str(tmp_path)), CheckpointError)
    assert message.startswith("lm_head.codes: holds torch.uint8")
    stored["lm_head.scale"][0] = float("nan")
    save_file(stored, file)
    assert "lm_head.scale: holds what is no finite" in complaint(lambda: load_model(str(tmp_path)))
    file.write_bytes(file.read_bytes()[:-9])
    assert "missing or damaged" in complaint(lambda: load_model(str(tmp_path)))


def test_nobody_trains_on_it(model: StableLM2, tmp_path: Path) -> None:
    quantise(model, 8, None).save_pretrained(tmp_path)
    world = World(torch.device("cpu"))
    message = complaint(lambda: load_weights(str(tmp_path), StableLM2(SIZES), world))
    assert message.startswith("quantization_config = ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 5}, "bits = 5: must be 8 or 4"),
        ({"group": 0}, "group = 0: must be at least 1"),
        ({"group": 48}, "group = 48: does not divide the model's matrices of 64 columns"),
        ({"method": "awq"}, "method = 'awq'"),
        ({"method": "gptq"}, "calibration = None: gptq needs a text"),
        ({"calibration": (IDS,)}, "calibration = given"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str, model: StableLM2) -> None:
    assert words in complaint(lambda: quantise(model, **options), ConfigError)
