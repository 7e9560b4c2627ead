"""Validation by hand, and what its value may not depend on."""

import math

import numpy as np
import pytest
import torch

from slm2_minimal.config import DataConfig
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.evaluate import validation
from slm2_minimal.evaluate.validation import (
    ValidationSet,
    unigram,
    validation_losses,
    validation_sets,
)
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from tests.models import SMALL

CPU = torch.device("cpu")


def test_unigram_and_validation_by_hand() -> None:
    counts = np.asarray([1, 2, 1, 0, 0, 0, 0])  # one is added to each
    torch.testing.assert_close(
        unigram(counts), torch.tensor([2, 3, 2, 1, 1, 1, 1], dtype=torch.float64).div(11).log()
    )
    held_out = ValidationSet(
        TokenStream.from_documents([[1, 3]], eos=0), counts, seq_len=4, batch_size=2
    )
    assert held_out.unigram_loss == pytest.approx(
        -(math.log(1 / 11) + math.log(2 / 11)) / 2
    )  # the targets are 3 and the end
    model = StableLM2(SMALL)
    logits = model(torch.tensor([[1, 3]])).log_softmax(-1)
    expected = -(logits[0, 0, 3] + logits[0, 1, 0]).item() / 2
    assert validation_losses(model, {"x": held_out}, CPU)["x"] == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_depend_on_the_batch() -> None:
    documents = [np.random.default_rng(i).integers(1, 7, size=5 + 7 * i).tolist() for i in range(5)]
    stream, model = TokenStream.from_documents(documents, eos=0), StableLM2(SMALL)
    one, many = (
        ValidationSet(stream, np.ones(7, dtype=np.int64), seq_len=8, batch_size=rows)
        for rows in (1, 4)
    )
    a, b = (validation_losses(model, {"x": held_out}, CPU)["x"] for held_out in (one, many))
    assert a == pytest.approx(b, rel=1e-6)


def test_a_long_held_out_text_is_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences 0, 2 and 5 of eight, from the whole length; both losses are of their
    targets and of no other.
    """
    monkeypatch.setattr(validation, "MAX_SEQUENCES", 3)
    tokens = np.random.default_rng(0).integers(1, 7, size=31)
    stream, model, counts = (
        TokenStream.from_documents([tokens], eos=0),
        StableLM2(SMALL),
        np.arange(7),
    )
    held_out = ValidationSet(stream, counts, seq_len=4, batch_size=2)
    assert [len(batch.input_ids) for batch in held_out.batches()] == [2, 1]
    read = np.append(tokens, 0)
    rows = torch.from_numpy(np.stack([read[4 * i : 4 * i + 4] for i in (0, 2, 5)]))
    targets = torch.from_numpy(np.stack([read[4 * i + 1 : 4 * i + 5] for i in (0, 2, 5)]))
    assert held_out.unigram_loss == pytest.approx(-((targets + 1) / 28).log().mean().item())
    expected = -model(rows).log_softmax(-1).gather(-1, targets[..., None]).mean().item()
    assert validation_losses(model, {"x": held_out}, CPU)["x"] == pytest.approx(expected, rel=1e-5)


def test_the_tiny_presets_held_out_text_is_read_whole(tiny: SentencePieceTokenizer) -> None:
    data = DataConfig.preset("tiny")
    for stream in open_training_data(data, tiny).held_out.values():
        held_out = ValidationSet(stream, np.ones(1024, dtype=np.int64), data.seq_len, batch_size=16)
        ids = torch.cat([batch.input_ids.flatten() for batch in held_out.batches()])
        assert ids[: len(stream.tokens)].tolist() == stream.tokens.tolist()


def test_a_language_without_training_text_has_no_set() -> None:
    """There is no unigram model to hold it against."""
    stream = TokenStream.from_documents([[1, 3]], eos=0)
    counts = {"de": np.ones(7, dtype=np.int64)}
    sets = validation_sets({"de": stream, "nl": stream}, counts, seq_len=4, micro_batch_size=2)
    assert list(sets) == ["de"]
