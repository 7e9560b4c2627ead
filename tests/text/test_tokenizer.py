"""Text to ids and back: exact round trips, streams and documents."""

import unicodedata
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.text import interface
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import nfc
from slm2_minimal.text.tokenizer import Arcade100k, SentencePieceTokenizer, Tokenizer
from tests.text.conftest import any_text, as_document, nasty_text


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("40112345678")
    assert [tokenizer.decode([i]) for i in ids] == list("40112345678")


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


@given(text=st.text())
def test_documents_hold_the_same_ids(tokenizer: Tokenizer, text: str) -> None:
    assert as_document(tokenizer, text).tolist() == tokenizer.encode(text)


def test_documents_hold_no_special_ids(arcade: Arcade100k) -> None:
    text = "<|endoftext|> and <|im_start|>"
    assert as_document(arcade, text).tolist() == arcade.encode(text)
    assert max(as_document(arcade, text)) < 100_256
