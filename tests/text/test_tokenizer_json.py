"""Arcade100k from a released folder's tokenizer.json: the forms it has, and what is
refused because it would give other ids.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.files import write_json
from slm2_minimal.text.arcade import ARCADE_PATTERN, ARCADE_SPECIAL, Arcade100k
from slm2_minimal.text.merges import to_chars
from slm2_minimal.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from tests.complaints import data_error

Content = dict[str, Any]


@pytest.fixture(scope="module")
def released(arcade: Arcade100k) -> Content:
    """The form that the published folders have: the line breaks in the pattern are the
    characters themselves, the matches are what is not removed, the unused id is named.
    """
    pattern = ARCADE_PATTERN.replace(r"\r", "\r").replace(r"\n", "\n")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    special = {"<|spare|>": 100_256, **ARCADE_SPECIAL}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": name, "special": True} for name, token_id in special.items()
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "unk_token": None,
            "vocab": {to_chars(arcade.token_bytes(i)): i for i in range(100_256)} | special,
            "merges": [],
        },
    }


def load(folder: Path, content: Any) -> Tokenizer:
    write_json(folder / "tokenizer.json", content)
    return load_tokenizer(folder)


def test_the_released_form(released: Content, arcade: Arcade100k, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, released)
    assert isinstance(tokenizer, Arcade100k)
    assert tokenizer.fingerprint == arcade.fingerprint
    text = "Der Zug kam um 12:40.\r\n\r\n<|endoftext|>é"
    assert tokenizer.encode(text) == arcade.encode(text)
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size == 100_289


def test_a_file_without_normaliser(
    released: Content, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizer that the model was trained with had one; a line says the rest."""
    tokenizer = load(tmp_path, {**released, "normalizer": None})
    assert "its file leaves text as it is; here it is put in NFC" in caplog.text
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


REFUSED: dict[str, tuple[Callable[[Content], object], str]] = {
    "another model": (
        lambda each: each["model"].update(type="Unigram"),
        "model, a Unigram, of tokenizer.json is not plain byte-level BPE",
    ),
    "a prefix": (
        lambda each: each["model"].update(continuing_subword_prefix="##"),
        "is not plain byte-level BPE",
    ),
    "bytes as tokens": (
        lambda each: each["model"].update(byte_fallback=True),
        "is not plain byte-level BPE",
    ),
    "dropout": (lambda each: each["model"].update(dropout=0.1), "is not plain byte-level BPE"),
    "NFKC": (
        lambda each: each.update(normalizer={"type": "NFKC"}),
        "normalizer of tokenizer.json is not NFC",
    ),
    "three digits": (
        lambda each: each["pre_tokenizer"]["pretokenizers"][0].update(
            pattern={"Regex": ARCADE_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")}
        ),
        "pre_tokenizer of tokenizer.json does not cut text by Arcade100k's pattern",
    ),
    "what is between": (
        lambda each: each["pre_tokenizer"]["pretokenizers"][0].update(invert=False),
        "does not cut text by",
    ),
    "a space before": (
        lambda each: each["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "does not cut text by",
    ),
    "no cuts": (lambda each: each.pop("pre_tokenizer"), "does not cut text by"),
    "a first token": (
        lambda each: each.update(post_processor={"type": "TemplateProcessing"}),
        "post_processor of tokenizer.json may add tokens to a text",
    ),
    "a special token less": (
        lambda each: each["added_tokens"].pop(),
        "'<|extra0|>' has id None, Arcade100k's 100288",
    ),
    "a special token more": (
        lambda each: each["added_tokens"].append({"id": 100_289, "content": "<|user|>"}),
        "'<|user|>' has id 100289, Arcade100k's None",
    ),
    "a special token elsewhere": (
        lambda each: each["added_tokens"][1].update(id=100_260),
        "'<|endoftext|>' has id 100260, Arcade100k's 100257",
    ),
    "another vocabulary": (
        lambda each: each["model"]["vocab"].update({"Ġthe": 1, "é": 279}),
        "model.vocab of tokenizer.json holds other tokens than cl100k_base",
    ),
    "a token that is no bytes": (
        lambda each: each["model"]["vocab"].update({"漢": 279}),
        "model.vocab of tokenizer.json holds other tokens",
    ),
    "no vocabulary": (
        lambda each: each["model"].pop("vocab"),
        "model.vocab of tokenizer.json is not what a tokenizer.json has there",
    ),
    "an id that is none": (
        lambda each: each["model"]["vocab"].update({"Ġthe": "first"}),
        "model.vocab.Ġthe of tokenizer.json is not what",
    ),
    "tokens that are none": (
        lambda each: each.update(added_tokens=[1]),
        "added_tokens.0 of tokenizer.json is not what",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_give_other_ids(case: str, released: Content, tmp_path: Path) -> None:
    """By the name of the part, before anything is encoded."""
    change, expected = REFUSED[case]
    content = {**copy.deepcopy({**released, "model": None}), "model": {**released["model"]}}
    content["model"]["vocab"] = dict(released["model"]["vocab"])
    change(content)
    message = data_error(lambda: load(tmp_path, content))
    assert message.startswith(f"tokenizer = {str(tmp_path)!r}: ")
    assert expected in message
    assert message.endswith("only Arcade100k's is read, name another tokenizer")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "{}", "[" * 100_000, "\xff"])
def test_what_is_no_tokenizer_json(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    assert "of tokenizer.json is not" in data_error(lambda: load_tokenizer(tmp_path))


def test_which_file_of_a_folder(tmp_path: Path) -> None:
    """A SentencePiece model says more than the JSON that was made of it."""
    assert find_tokenizer(tmp_path) is None
    for name in ("arcade100k.tiktoken", "tokenizer.json", "tokenizer.model"):
        (tmp_path / name).touch()
        found = find_tokenizer(tmp_path)
        assert found is not None
        assert found.name == name
