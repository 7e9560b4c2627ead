"""Arcade100k: the report's vocabulary and splits, and runs of blanks of any length."""

import base64
import hashlib
import re
import unicodedata

import pytest
import tiktoken
import tiktoken.load
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.text import arcade as module
from slm2_minimal.text.tokenizer import Arcade100k
from tests.text.conftest import PIECES, any_text, as_document

RANKS_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
SPECIAL_TOKENS = {
    100257: "<|endoftext|>", 100258: "<|fim_prefix|>", 100259: "<|fim_middle|>",
    100260: "<|fim_suffix|>", 100261: "<|fim_pad|>", 100262: "<gh_stars>", 100263: "<filename>",
    100264: "<issue_start>", 100265: "<issue_comment>", 100266: "<issue_closed>",
    100267: "<jupyter_start>", 100268: "<jupyter_text>", 100269: "<jupyter_code>",
    100270: "<jupyter_output>", 100271: "<empty_output>", 100272: "<commit_before>",
    100273: "<commit_msg>", 100274: "<commit_after>", 100275: "<reponame>",
    100276: "<|endofprompt|>", 100277: "<|im_start|>", 100278: "<|im_end|>", 100279: "<|pause|>",
    100280: "<|reg0|>", 100281: "<|reg1|>", 100282: "<|reg2|>", 100283: "<|reg3|>",
    100284: "<|reg4|>", 100285: "<|reg5|>", 100286: "<|reg6|>", 100287: "<|reg7|>",
    100288: "<|extra0|>",
}  # fmt: skip
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# Arcade100k as the report's tokenizer is


def test_arcade_vocabulary(arcade: Arcade100k) -> None:
    assert arcade.vocab_size == 100_289
    assert arcade.padded_vocab_size == 100_352 == 1568 * 64
    assert arcade.eos_token_id == 100_257
    assert arcade.name == "arcade100k"
    assert {i: name for name, i in arcade.special_tokens.items()} == SPECIAL_TOKENS
    assert len(arcade.special_tokens) == 32


def test_arcade_ranks(arcade: Arcade100k, ranks_file: bytes) -> None:
    assert hashlib.sha256(ranks_file).hexdigest() == RANKS_SHA256
    assert arcade.fingerprint == RANKS_SHA256[:16]
    lines = [line.split() for line in ranks_file.splitlines()]
    assert [int(rank) for _, rank in lines] == list(range(100_256))
    for rank in (0, 255, 256, 9906, 100_255):
        assert arcade.token_bytes(rank) == base64.b64decode(lines[rank][0])


def test_arcade_known_ids(arcade: Arcade100k) -> None:
    assert arcade.encode("Hello world") == [
        9906,
        1917,
    ]  # the same as cl100k_base's, where there is no digit
    assert arcade.encode("") == []


def test_arcade_adds_no_token_at_the_start(arcade: Arcade100k) -> None:
    assert len(arcade.encode("a")) == 1


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("in 2024", ["in", " ", "2", "0", "2", "4"]),
        ("3.14159", ["3", ".", "1", "4", "1", "5", "9"]),
        ("they're don't", ["they", "'re", " don", "'t"]),
        ("(word) -word", ["(word", ")", " -", "word"]),
        ("end.\n\nNext", ["end", ".\n\n", "Next"]),
        ("a   b", ["a", "  ", " b"]),
        ("a \n b", ["a", " \n", " b"]),
        ("if (x):\n    return", ["if", " (", "x", "):\n", "   ", " return"]),
        ("tab\tword", ["tab", "\tword"]),
    ],
)
def test_arcade_splits(arcade: Arcade100k, text: str, pieces: list[str]) -> None:
    """Texts whose every piece happens to be one token, so that the tokens show the
    pieces.
    """
    assert [arcade.decode([i]) for i in arcade.encode(text)] == pieces


def _apart(text: str) -> str:
    """The text with every pair of neighbouring numbers kept apart, so that cl100k's
    groups of digits have length 1.
    """
    text = unicodedata.normalize("NFC", text)
    return "".join(c + "x" * (unicodedata.category(c)[0] == "N") for c in text)


@pytest.fixture(scope="module")
def cl100k(arcade: Arcade100k) -> tiktoken.Encoding:
    ranks = {arcade.token_bytes(i): i for i in range(100_256)}
    return tiktoken.Encoding(
        "cl100k", pat_str=CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )


@given(text=any_text)
@settings(max_examples=300)
def test_arcade_is_cl100k_but_for_digits(
    arcade: Arcade100k, cl100k: tiktoken.Encoding, text: str
) -> None:
    text = _apart(text)
    assert arcade.encode(text) == cl100k.encode_ordinary(text)


def test_arcade_is_not_cl100k_on_digits(arcade: Arcade100k, cl100k: tiktoken.Encoding) -> None:
    assert len(cl100k.encode_ordinary("123456")) == 2
    assert len(arcade.encode("123456")) == 6


@pytest.mark.parametrize("token", SPECIAL_TOKENS.values())
def test_plain_text_never_gives_a_special_token(arcade: Arcade100k, token: str) -> None:
    number = arcade.special_tokens[token]
    assert max(arcade.encode(f"a{token}b")) < 100_256
    assert max(arcade.encode_batch([token])[0]) < 100_256
    assert max(arcade.encode_stream([token[:3], token[3:]])) < 100_256
    assert arcade.decode(arcade.encode(token)) == token
    assert arcade.encode(f"a{token}b", allow_special=True) == [
        *arcade.encode("a"),
        number,
        *arcade.encode("b"),
    ]
    assert arcade.decode([number]) == token


# White space without an end


@given(
    text=st.lists(st.sampled_from([*PIECES, *" \t\xa0\n", "   ", "<|im_start|>"]), max_size=25).map(
        "".join
    ),
    allow_special=st.booleans(),
)
@example(text="a   \n   b   <|im_start|>   ", allow_special=True)
@example(text="   <|im_start|>   ", allow_special=False)
@example(text="   \x1c\x1c\x1c\x1c   \x1c", allow_special=False)
@settings(max_examples=600)
def test_long_runs_are_cut_off_where_the_pattern_cuts(
    arcade: Arcade100k, text: str, allow_special: bool
) -> None:
    """With runs of three taken for long ones, tiktoken itself says what must come
    out.
    """
    text = unicodedata.normalize("NFC", text)
    expected = tiktoken.Encoding.encode(
        arcade.encoding,
        text,
        allowed_special="all" if allow_special else set(),
        disallowed_special=(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module,
            "_LONG_RUN",
            re.compile(module._LONG_RUN.pattern.replace(str(module.MAX_RUN), "3")),
        )
        patch.setattr(module, "_may_have_long_run", lambda text: True)
        assert arcade.encode(text, allow_special=allow_special) == expected


@pytest.mark.parametrize(
    ("blank", "length"),
    [(" ", module.MAX_RUN - 1), (" ", module.MAX_RUN), (" ", 999_998), ("\u2003", 999_998)],
)
def test_long_runs_that_tiktoken_can_do(arcade: Arcade100k, blank: str, length: int) -> None:
    text = f"one two\n{blank * length}end"
    expected = tiktoken.Encoding.encode_ordinary(arcade.encoding, text)
    assert arcade.encode(text) == expected
    assert as_document(arcade, text).tolist() == expected


@pytest.mark.parametrize(
    ("end", "special"), [("end", False), ("", False), ("\nend", False), ("<|im_end|>", True)]
)
def test_a_run_that_is_too_long_for_tiktoken(arcade: Arcade100k, end: str, special: bool) -> None:
    """The longest token of spaces has 128 of them, so 2,000 x 128 spaces more are 2,000
    tokens more after the first.
    """
    text, shorter = (f"table{' ' * length}{end}" for length in (1_000_064, 1_000_064 - 2_000 * 128))
    word, first, *rest = tiktoken.Encoding.encode(
        arcade.encoding, shorter, allowed_special="all" if special else set(), disallowed_special=()
    )
    assert len(arcade.token_bytes(first)) == 128
    assert arcade.encode(text, allow_special=special) == [word, *[first] * 2_001, *rest]


def test_a_run_that_is_too_long_in_documents_batches_and_streams(arcade: Arcade100k) -> None:
    text = "table" + " " * 1_000_064 + "end"
    ids = arcade.encode(text)
    assert as_document(arcade, text).tolist() == ids
    assert arcade.encode_batch([text, "a b"]) == [ids, arcade.encode("a b")]
    assert list(arcade.encode_stream([text[:600_000], text[600_000:]])) == ids
