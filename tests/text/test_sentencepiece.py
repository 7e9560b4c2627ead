"""SentencePiece models: the committed one, and training."""

import hashlib
import io
import unicodedata
from pathlib import Path

import pytest
import sentencepiece

from slm2_minimal.config import PRESET_DIR, DataError
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.sentence_piece import train_sentencepiece
from slm2_minimal.text.tokenizer import SentencePieceTokenizer, load_tokenizer

# SentencePiece models


def test_tiny_model(tiny: SentencePieceTokenizer) -> None:
    assert (tiny.vocab_size, tiny.eos_token_id, tiny.name) == (1024, 0, "tiny")
    assert (
        tiny.fingerprint
        == hashlib.sha256((PRESET_DIR / "tiny.model").read_bytes()).hexdigest()[:16]
    )
    assert tiny.decode(tiny.encode("\n")) == "\n"
    assert len(tiny.encode("\n")) == 1


def test_pieces_of_tiny_never_span_a_word_or_two_digits(tiny: SentencePieceTokenizer) -> None:
    """What lets `encode_stream` cut before a lone space and after newlines."""
    pieces = [
        tiny.processor.id_to_piece(i)
        for i in range(2, tiny.vocab_size)
        if not tiny.processor.is_byte(i)
    ]
    assert [p for p in pieces if "\u2581" in p.lstrip("\u2581")] == []
    assert [p for p in pieces if "\n" in p] == ["\n"]
    assert [p for p in pieces if sum(c.isdigit() for c in p) and len(p.lstrip("\u2581")) > 1] == []
    assert sum(map(tiny.processor.is_byte, range(tiny.vocab_size))) == 256


def test_tiny_is_what_training_on_the_training_split_gives(tmp_path: Path) -> None:
    texts = [document.text for document in load_corpus() if not is_validation(document.id, 10)]
    train_sentencepiece(texts, tmp_path / "tiny.model", 1024)
    assert (tmp_path / "tiny.model").read_bytes() == (PRESET_DIR / "tiny.model").read_bytes()


def test_training_is_deterministic(tmp_path: Path, some_texts: list[str]) -> None:
    train_sentencepiece(some_texts, tmp_path / "a.model", 400)
    train_sentencepiece(iter(some_texts), tmp_path / "b.model", 400)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]
    trained = load_tokenizer(tmp_path / "a.model")
    assert (trained.vocab_size, trained.eos_token_id, trained.name) == (400, 0, "a")
    assert len(trained.encode(some_texts[0])) < len(some_texts[0]) / 1.3
    for text in ("  two  blanks ", "\n\n x", "漢 😀", "12 345"):
        assert trained.decode(trained.encode(text)) == text
    train_sentencepiece(some_texts[1:], tmp_path / "b.model", 400)
    assert load_tokenizer(tmp_path / "b.model").fingerprint != trained.fingerprint


def test_training_normalises(tmp_path: Path, some_texts: list[str]) -> None:
    train_sentencepiece([*some_texts, "café naïve " * 50], tmp_path / "a.model", 400)
    train_sentencepiece(
        [*some_texts, unicodedata.normalize("NFD", "café naïve " * 50)], tmp_path / "b.model", 400
    )
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_all_control_symbols_are_special_tokens(some_texts: list[str]) -> None:
    """Also of a model that was not trained here; what is longer is found first."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(some_texts),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        control_symbols=["<turn>", "<turn>s"],
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue(), "chat")
    assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2, "<turn>": 3, "<turn>s": 4}
    ids = tokenizer.encode("<turn>Hi<turn>s</s>", allow_special=True)
    assert ids == [3, *tokenizer.encode("Hi"), 4, 2]
    assert not {1, 2, 3, 4} & set(tokenizer.encode("<turn>Hi<turn>s</s>"))
    assert tokenizer.encode("\u2581<s>", allow_special=True)[-1] == 1


@pytest.mark.parametrize(("texts", "size"), [(["a b c"], 5000), (["a b c"], 10), ([], 300)])
def test_training_that_cannot_be(tmp_path: Path, texts: list[str], size: int) -> None:
    path = tmp_path / "t.model"
    with pytest.raises(DataError) as caught:
        train_sentencepiece(texts, path, size)
    assert str(caught.value).startswith(f"vocab_size = {size}: SentencePiece says: ")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


GREEK = "αυτό είναι ένα κείμενο στα ελληνικά "


@pytest.mark.parametrize(
    "line",
    [
        GREEK * 16,
        GREEK * 1000,
        GREEK.replace(" ", "") * 1000,
        GREEK * 16 + "\u2585",
        "\ud800" + GREEK,
    ],
    ids=["short", "long", "one word", "separator", "surrogate"],
)
def test_no_line_is_dropped(tmp_path: Path, some_texts: list[str], line: str) -> None:
    """Greek words are learned from lines of any length, whatever else is in them."""
    train_sentencepiece([*some_texts, *[line] * 40], tmp_path / "a.model", 400)
    trained = load_tokenizer(tmp_path / "a.model")
    assert len(trained.encode("είναι")) <= 3
    assert trained.decode(trained.encode("▅ και ▅")) == "▅ και ▅"


def test_long_lines_are_cut_before_spaces(tmp_path: Path) -> None:
    """So the words are the same as in short lines, and so is the model."""
    words = [document.text.split() for document in load_corpus(languages=["en"], limit=10)]
    lines = [" " + " ".join(text) for text in words]
    train_sentencepiece(lines, tmp_path / "short.model", 400)
    train_sentencepiece(["".join(lines) * 20], tmp_path / "long.model", 400)
    train_sentencepiece(lines * 20, tmp_path / "many.model", 400)
    assert max(map(len, lines)) < 4192
    assert (tmp_path / "long.model").read_bytes() == (tmp_path / "many.model").read_bytes()
