"""Exported tokenizers: the ids of transformers are ours, for any text, and what cannot
be said exactly is not said.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from slm2_minimal.config import DataError
from slm2_minimal.export.tokenizer_files import (
    read_chat_template,
    sentence_piece_json,
    why_not_exact,
    write_tokenizer,
)
from slm2_minimal.files import read_json, write_json
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.sentence_piece import train_sentencepiece
from slm2_minimal.text.tokenizer import SentencePieceTokenizer, load_tokenizer

Theirs = Callable[..., Any]
Pair = tuple[Tokenizer, Theirs]

# What is likely to be treated in a way of its own by one of the two sides
CHARACTERS = [
    *"aeBstlmdrvſß '’\n\r\t 0129.,!?-_(){}[]<>|/\\\"▁▂€😀漢かَا한½²Ⅷ",
    *"é\u0301\u0308\u0327\u200b\u200d\ufeff\u00a0\u3000\u2028\x85\x00\x1c\x1f\x7f\ue000\U0010ffff",
    "<|endoftext|>", "<|im_end|>", "<filename>", "</s>", "<unk>", "<0x41>", "<|unused|>",
    "   ", "\r\n", "👩‍👩‍👧", "'LL", "\u1100\u1161",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(CHARACTERS), st.characters(exclude_categories=["Cs"])))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A SentencePiece model with several times the merges of `tiny`."""
    path = tmp_path_factory.mktemp("larger") / "larger.model"
    train_sentencepiece([document.text for document in load_corpus()], path, 4096)
    return load_tokenizer(path)


@pytest.fixture(scope="module", params=["arcade", "tiny", "larger"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tokenizer, and transformers' of the files that it was written to."""
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    assert write_tokenizer(folder, tokenizer, 4096) is None
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == theirs.pad_token_id == tokenizer.eos_token_id
    assert theirs.model_max_length == 4096
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    return tokenizer, theirs


def assert_same(pair: Pair, text: str) -> None:
    """As text, and with the names of special tokens in it taken for them."""
    ours, theirs = pair
    assert theirs(text, split_special_tokens=True).input_ids == ours.encode(text)
    assert theirs(text).input_ids == ours.encode(text, allow_special=True)


def test_the_ids_of_the_corpus(pair: Pair) -> None:
    """Seven languages, code and arithmetic; and they come back as the text."""
    ours, theirs = pair
    texts: dict[str, str] = {}
    for document in load_corpus():
        texts[document.language] = texts.get(document.language, "") + document.text
    assert {"en", "de", "es", "fr", "it", "nl", "pt", "code", "math"} <= texts.keys()
    for text in texts.values():
        assert_same(pair, text)
        assert theirs.decode(ours.encode(text)) == text


@given(parts=TEXTS)
@example(parts=[" " * 5000, "x"])
@example(parts=["e", *"\u0301\u0327" * 40])
def test_the_ids_of_any_text(pair: Pair, parts: list[str]) -> None:
    assert_same(pair, "".join(parts))


def test_every_kind_of_character(pair: Pair) -> None:
    """One in sixty-one of Unicode's, between letters and digits, a hundred a text."""
    codes = [code for code in range(0, 0x110000, 61) if not 0xD800 <= code < 0xE000]
    parts = ["a{0}b {0}{0}1{0}".format(chr(code)) for code in codes]
    for start in range(0, len(parts), 100):
        assert_same(pair, "".join(parts[start : start + 100]))


def test_special_names_in_a_text_are_special_to_transformers(pair: Pair) -> None:
    """The difference between the two sides' defaults, said in the module."""
    ours, theirs = pair
    name = theirs.eos_token
    assert theirs(f"a{name}").input_ids[-1] == ours.eos_token_id
    assert ours.eos_token_id not in ours.encode(f"a{name}")


# SentencePiece models that were trained elsewhere

EXACT: dict[str, Any] = {
    "vocab_size": 400,
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
}


def trained(**changes: Any) -> SentencePieceTokenizer:
    model = io.BytesIO()
    texts = [document.text for document in load_corpus(languages=["en"], limit=10)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, minloglevel=2, **EXACT | changes
    )
    return SentencePieceTokenizer(model.getvalue(), "foreign")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"user_defined_symbols": ["\n", "\t"], "control_symbols": ["<turn>"]}, None),
        ({"model_type": "unigram"}, "it is no BPE model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it changes characters"),
        ({"add_dummy_prefix": True}, "it adds or removes spaces"),
        ({"remove_extra_whitespaces": True}, "it adds or removes spaces"),
        ({"byte_fallback": False}, "it has no bytes to fall back on"),
        ({"user_defined_symbols": ["<turn>"]}, "it has symbols of its own that are longer"),
    ],
)
def test_what_is_exact(changes: dict[str, Any], reason: str | None, tmp_path: Path) -> None:
    """Of the others the model file alone is written, and a reason given."""
    tokenizer = trained(**changes)
    assert (why_not_exact(tokenizer) or "").startswith(reason or "")
    message = write_tokenizer(tmp_path, tokenizer, 4096)
    assert (tmp_path / "tokenizer.model").read_bytes() == tokenizer.model
    assert (message is None) == (reason is None) == (tmp_path / "tokenizer.json").exists()
    if reason is None:
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        for text in ("Two  words\n\tand 12 <turn>s", "</s>▁ 漢 ", *CHARACTERS):
            assert_same((tokenizer, theirs), text)
    else:
        assert message == (
            f"no tokenizer.json was written: of its SentencePiece model, {why_not_exact(tokenizer)}"
        )


def test_merges_decide(tiny: SentencePieceTokenizer) -> None:
    """Without one of them the ids are others: the test above would see it."""
    content = sentence_piece_json(tiny)
    assert content["model"]["merges"][:3] == [["e", "n"], [" ", "d"], ["e", "r"]]
    assert len(content["model"]["merges"]) > 600


# Chat templates


def test_where_a_chat_template_stands(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    for content, expected in (
        ({}, None),
        ([], None),
        ({"chat_template": None}, None),
        ({"chat_template": "one"}, "one"),
        ({"chat_template": [{"name": "tool", "template": "a"}, {}, 1]}, None),
        ({"chat_template": [{"name": "tool"}, {"name": "default", "template": "b"}]}, "b"),
    ):
        write_json(config, content)
        assert read_chat_template(tmp_path) == expected
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert read_chat_template(tmp_path) == "from the file"


def test_a_damaged_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config.json: cannot be read .*; download it"):
        read_chat_template(tmp_path)


def test_nothing_of_the_model_is_in_the_configuration(
    tiny: SentencePieceTokenizer, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, tiny, 48, "{{ messages }}")
    assert read_json(tmp_path / "tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 48,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "pad_token": "</s>",
        "chat_template": "{{ messages }}",
    }
