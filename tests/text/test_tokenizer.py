"""Text to ids and back: the facts of Arcade100k, exact round trips, streams, and every
way a vocabulary can be missing or damaged.
"""

import base64
import hashlib
import re
import unicodedata
from typing import Any

import numpy as np
import pytest
import tiktoken
import tiktoken.load
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.text import arcade as module
from slm2_minimal.text import interface
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import nfc
from slm2_minimal.text.tokenizer import Arcade100k, SentencePieceTokenizer, Tokenizer

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

# Characters at which splitting, normalising or cutting can go wrong, and strings that
# look like what they are not.
PIECES = [
    *" \n\r\t\v\f\x00\x1c\x85\xa0\u1680\u2003\u2028\u3000\ufeff\u200b\u200d\u2581",
    *"aZsSſtTrReElLdDmMéßœñÅΩж'’", "e\u0301", *"\u0301\u0316\u0327\u0345\u0340",
    "か\u3099", *"漢字가ᄀ\u1161\u11a8",
    *"019٣५²½Ⅷ", *'.,!?<|>_-(){}"`#', "😀", "👩\u200d💻", "🇩🇪",
    "  ", "\n\n", "\r\n", " \n", "\n ", "'s", "'LL", " the", "tion",
    "<|endoftext|>", "</s>", "<unk>", "<0x0A>",
]  # fmt: skip
nasty_text = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
any_text = st.one_of(st.text(max_size=60), nasty_text)


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


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("40112345678")
    assert [tokenizer.decode([i]) for i in ids] == list("40112345678")


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


# Normalisation and special tokens


def test_special_tokens_are_what_allow_special_takes(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token_id in tokenizer.special_tokens.values()
    for name, token_id in tokenizer.special_tokens.items():
        assert tokenizer.encode(f"a{name}b", allow_special=True) == [
            *tokenizer.encode("a"),
            token_id,
            *tokenizer.encode("b"),
        ]
        assert token_id not in tokenizer.encode(name)


def test_both_normalise_to_nfc(tokenizer: Tokenizer) -> None:
    for decomposed, composed in (
        ("cafe\u0301", "café"),
        ("\u212b", "Å"),
        ("\u1112\u1161\u11ab", "한"),
        ("o\u0302\u0323", "\u1ed9"),
    ):
        assert tokenizer.encode(decomposed) == tokenizer.encode(composed)
        assert tokenizer.decode(tokenizer.encode(decomposed)) == composed
        assert tokenizer.encode_batch([decomposed]) == [tokenizer.encode(composed)]
    assert (
        tokenizer.decode(tokenizer.encode("ﬁ ² ℃")) == "ﬁ ² ℃"
    )  # NFC, not NFKC: compatibility characters stay


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


def test_sentencepiece_control_symbols_are_text(tiny: SentencePieceTokenizer) -> None:
    for text in ("</s>", "<unk>", "<0x41>", "a</s></s>b"):
        assert not {0, 1} & set(tiny.encode(text))
        assert tiny.decode(tiny.encode(text)) == text
    assert tiny.encode("a</s></s>b", allow_special=True) == [
        *tiny.encode("a"),
        0,
        0,
        *tiny.encode("b"),
    ]
    assert tiny.encode("</s>", allow_special=True) == [0]
    assert tiny.encode("a b", allow_special=True) == tiny.encode("a b")


# Round trips


@given(text=any_text)
@example(text="a\u2581 b")  # the character that SentencePiece writes for a space
@example(text="\x00 \ufffd\uffff\U0010ffff")
@example(text=" lead, double  blank, trail \n\n\t \r\n ")
@settings(max_examples=400)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.eos_token_id not in ids


@given(texts=st.lists(any_text, max_size=5))
@settings(max_examples=100)
def test_batch_is_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_half_of_a_surrogate_pair_becomes_u_fffd(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"
    for text in ("a\ud83db", "\ud83d\ude00", "\udc00e\u0301", "\ud800 </s><|im_start|>"):
        ids = tokenizer.encode(text)
        assert tokenizer.encode_batch([text]) == [ids]
        assert list(tokenizer.encode_stream(text)) == ids
        assert as_document(tokenizer, text).tolist() == ids
        for allow_special in (False, True):
            repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            assert tokenizer.encode(text, allow_special=allow_special) == tokenizer.encode(
                repaired, allow_special=allow_special
            )


def test_the_corpus_comes_back(tokenizer: Tokenizer) -> None:
    for document in load_corpus():
        assert tokenizer.decode(tokenizer.encode(document.text)) == document.text


# Streams


@given(chunks=st.lists(nasty_text, max_size=8))
@example(chunks=["e", "\u0301 x"])
@example(chunks=["a ", " ", " b"])
@example(chunks=["x\n", "\n", " \n y"])
@example(chunks=["I'", "ll do", "n't"])
@example(chunks=["\r", "\n\u0301", "a"])
@settings(max_examples=400)
def test_encode_stream_is_encode(tokenizer: Tokenizer, chunks: list[str]) -> None:
    assert list(tokenizer.encode_stream(chunks)) == tokenizer.encode("".join(chunks))


@given(data=st.data())
@settings(max_examples=60)
def test_encode_stream_of_prose(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = PROSE[data.draw(st.integers(0, len(PROSE) - 1))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert list(tokenizer.encode_stream(chunks)) == tokenizer.encode(text)


PROSE = [document.text for document in load_corpus(languages=["en", "fr", "code", "math"])]


def test_encode_stream_does_not_hold_everything_back(tokenizer: Tokenizer) -> None:
    """Ids come out while chunks go in: after a thousand words no more than the last one
    is held.
    """
    read = 0

    def chunks() -> object:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield "some words "

    stream = tokenizer.encode_stream(chunks())  # type: ignore[arg-type]
    next(stream)
    assert read <= 2


def test_encode_stream_looks_at_each_chunk_once(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no place is safe for a cut, as in Chinese, all is held, and not searched
    again.
    """
    searched = 0

    class Counting:
        def finditer(self, text: str) -> Any:
            nonlocal searched
            searched += len(text)
            return cut.finditer(text)

    cut = interface._SAFE_CUT
    monkeypatch.setattr(interface, "_SAFE_CUT", Counting())
    text = "漢字" * 1000
    assert list(tokenizer.encode_stream(text)) == tokenizer.encode(text)
    assert searched <= 3 * len(text)


MARKS = "\u0301\u0316\u0323\u0344\u0345\u0f71\u0f72\u0f73\u3099\u09be\u0338"


@given(
    bases=st.lists(st.sampled_from([*"aé \n가", "\u1100", "\u09c7", "ế"]), min_size=1, max_size=4),
    marks=st.lists(st.sampled_from(MARKS), max_size=12),
    times=st.integers(0, 12),
)
@example(bases=["a"], marks=["\u0316", "\u0301"], times=50)
def test_long_runs_of_marks_are_normalised_as_python_does(
    bases: list[str], marks: list[str], times: int
) -> None:
    text = "".join(base + "".join(marks) * times for base in bases)
    assert nfc(text) == unicodedata.normalize("NFC", text)


def test_long_runs_of_marks_come_in_order_to_the_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own is an insertion sort: it takes a time that grows with the square."""
    seen: list[str] = []
    normalize = unicodedata.normalize
    monkeypatch.setattr(
        unicodedata, "normalize", lambda form, text: seen.append(text) or normalize(form, text)
    )
    nfc("a" + "\u0f73\u0301" * 5000)
    classes = [unicodedata.combining(mark) for mark in seen[-1]]
    assert classes == sorted(classes)


ids_of_any_kind = st.lists(
    st.one_of(
        st.integers(0, 100_352),
        st.integers(0, 300),
        st.sampled_from([-1, 1023, 1024, 100_256, 100_257, 100_300, 2**31, 2**70]),
    ),
    max_size=30,
)


@given(ids=ids_of_any_kind)
@settings(max_examples=400)
def test_decode_takes_any_ids_and_streams_the_same(tokenizer: Tokenizer, ids: list[int]) -> None:
    text = tokenizer.decode(ids)
    text.encode("utf-8")  # no half characters
    pieces = list(tokenizer.decode_stream(ids))
    assert "".join(pieces) == text
    assert all(pieces)


@given(text=st.text(alphabet="aé漢😀👩\u200d💻 ", max_size=12))
def test_decode_stream_never_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    """Id by id from the front: what was shown is always a beginning of the text."""
    shown = ""
    for piece in tokenizer.decode_stream(tokenizer.encode(text)):
        shown += piece
        assert unicodedata.normalize("NFC", text).startswith(shown)
    assert shown == unicodedata.normalize("NFC", text)


def test_ids_without_a_meaning(arcade: Arcade100k, tiny: SentencePieceTokenizer) -> None:
    for unused in (100_256, 100_289, 100_351, 100_352, -1, 2**70):
        assert arcade.decode([unused]) == "\ufffd"
    for unused in (1, 1024, 100_000, -1):  # 1 is <unk>
        assert tiny.decode([unused]) == "\ufffd"
    assert tiny.decode([0]) == ""  # the end of a text is no text


def test_broken_utf8(arcade: Arcade100k) -> None:
    smile = arcade.encode("😀")
    assert len(smile) == 2
    assert list(arcade.decode_stream(smile)) == ["😀"]
    assert arcade.decode(smile[:1]) == "\ufffd"
    assert arcade.decode([*smile[:1], *arcade.encode("a")]) == "\ufffda"
    assert list(arcade.decode_stream([*smile[:1], *arcade.encode("a")])) == ["\ufffda"]
    assert arcade.decode([arcade.encoding.encode_single_token(b"\xff")]) == "\ufffd"


def test_token_bytes_make_up_the_text(tokenizer: Tokenizer) -> None:
    text = "Größe: 漢字 😀\n"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def as_document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text by the fast path, without the end of text behind them."""
    ids, lengths = tokenizer.encode_documents([text])
    assert ids.dtype == np.uint32
    assert lengths.tolist() == [len(ids)]
    assert ids[-1] == tokenizer.eos_token_id
    return ids[:-1]


@given(text=st.text())
def test_documents_hold_the_same_ids(tokenizer: Tokenizer, text: str) -> None:
    assert as_document(tokenizer, text).tolist() == tokenizer.encode(text)


def test_documents_hold_no_special_ids(arcade: Arcade100k) -> None:
    text = "<|endoftext|> and <|im_start|>"
    assert as_document(arcade, text).tolist() == arcade.encode(text)
    assert max(as_document(arcade, text)) < 100_256


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
