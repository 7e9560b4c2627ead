"""What fewer bits cost, counted again by hand."""

import math

import pytest
import torch

from slm2_minimal.config import DataError
from slm2_minimal.evaluate import quantised
from slm2_minimal.evaluate.quantised import calibration, compare, held_out, text_costs
from slm2_minimal.inference.quantise import quantise
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from tests.models import TINY

SIZES = TINY.replace(hidden_size=64, intermediate_size=128)
TEXTS = ["The baker opened the door.", "Bread was cold, and the street was dark and long."]


@pytest.fixture(scope="module")
def models() -> tuple[StableLM2, StableLM2]:
    torch.manual_seed(0)
    model = StableLM2(SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model, quantise(model, 4, 32)


@torch.no_grad()
def test_costs_by_hand(
    models: tuple[StableLM2, StableLM2],
    tiny: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each text on its own, over batches and chunks that do not divide them."""
    monkeypatch.setattr(quantised, "CHUNK", 7)
    cost = text_costs(*models, {"en": TEXTS}, tiny)["en"]
    before, after, divergence, same, tokens = [], [], 0.0, 0, 0
    for text in TEXTS:
        ids = torch.tensor([[*tiny.encode(text), tiny.eos_token_id]])
        a, b = (model(ids)[0, :-1].log_softmax(-1) for model in models)
        before += a.gather(1, ids[0, 1:, None]).flatten().tolist()
        after += b.gather(1, ids[0, 1:, None]).flatten().tolist()
        divergence += (a.exp() * (a - b)).sum().item()
        same += (a.argmax(-1) == b.argmax(-1)).sum().item()
        tokens += ids.shape[1] - 1
    assert cost.tokens == tokens
    assert cost.loss_before == pytest.approx(-sum(before) / tokens, rel=1e-4)
    assert cost.loss == pytest.approx(-sum(after) / tokens, rel=1e-2)
    assert cost.divergence == pytest.approx(divergence / tokens, rel=2e-2)
    assert abs(cost.same_top_token - same / tokens) <= 2 / tokens
    size = sum(len(text.encode()) - len(tiny.token_bytes(tiny.encode(text)[0])) for text in TEXTS)
    assert cost.bits_per_byte_before == pytest.approx(-sum(before) / math.log(2) / size, rel=1e-4)


def test_a_model_beside_itself_costs_nothing(
    models: tuple[StableLM2, StableLM2], tiny: SentencePieceTokenizer
) -> None:
    cost = text_costs(models[0], models[0], {"en": TEXTS}, tiny)["en"]
    assert cost.loss == cost.loss_before
    assert cost.divergence == 0
    assert cost.same_top_token == 1


def test_layers_and_the_table(
    models: tuple[StableLM2, StableLM2], tiny: SentencePieceTokenizer
) -> None:
    report = compare(*models, {"en": TEXTS}, tiny)
    assert len(report.layers) == 7 + 1
    linears, layers = (dict(model.named_modules()) for model in models)
    for cost in report.layers:
        weight = linears[cost.name].weight
        lost = (weight - layers[cost.name].weights()).norm() / weight.norm()
        assert cost.relative_error == pytest.approx(lost.item(), rel=1e-5)
        assert cost.bytes_16_bits == 2 * weight.numel()
        assert cost.bytes == weight.numel() * 4.5 / 8
    lines = list(report.lines())
    assert [line.split()[0] for line in lines] == [
        "layer", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        "lm_head", "text", "en",
    ]  # fmt: skip
    assert len({len(line) for line in lines[:9]}) == len({len(line) for line in lines[9:]}) == 1


def test_long_texts_are_read_in_part(
    models: tuple[StableLM2, StableLM2],
    tiny: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantised, "SCORED_TOKENS", len(tiny.encode(TEXTS[0])) + 1)
    assert text_costs(*models, {"en": TEXTS}, tiny) == text_costs(*models, {"en": TEXTS[:1]}, tiny)


def test_nobody_is_compared_on_what_was_calibrated_on() -> None:
    every = held_out()
    assert {"en", "de", "es", "fr", "it", "nl", "pt", "code", "math"} == every.keys()
    documents = load_corpus()
    kept = [each for each in documents if is_validation(each.id, 10)]
    assert sum(map(len, every.values())) == len(kept)
    without = held_out([each.text for each in kept if each.language == "en"])
    assert without == {name: texts for name, texts in every.items() if name != "en"}
    with pytest.raises(DataError, match="all of the text that the models are compared on"):
        held_out([each.text for each in documents])


def test_calibration_is_packed_and_of_the_whole_text(
    tiny: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised, "CALIBRATION_TOKENS", 96)
    texts = [f"{i} loaves of bread." for i in range(300)]
    ids, positions, documents = calibration(texts, tiny, 48)
    assert ids.shape == positions.shape == documents.shape == (2, 48)
    assert positions[0, 0] == 0
    assert positions.max() < 20, "they restart"
    assert ids[0].tolist()[:3] == tiny.encode(texts[0])[:3]
    assert "15" in tiny.decode(ids[1].tolist()), "the second from the middle"
    with pytest.raises(DataError, match=r"calibrate = \d+ tokens: too few"):
        calibration(texts[:5], tiny, 48)
