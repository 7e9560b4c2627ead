"""What every tokenizer can do, in whole and in streams.

Texts are normalised to NFC, and any Unicode text comes back as that, with U+FFFD for
each half of a surrogate pair. Plain text never becomes a special token unless asked.
"""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64, UInt32

from slm2_minimal.text.documents import nfc

# A text may be cut after newlines and before a lone space, and its parts tokenised on
# their own: no piece of either tokenizer spans such a place.
_SAFE_CUT = re.compile(r"(?<=\n)(?=\S)|(?<=\S)(?= \S)")

UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()  # the bytes of an id without a meaning


class Tokenizer(ABC):
    """Text to ids and back. Ids are plain integers below `vocab_size`."""

    name: str
    vocab_size: int
    eos_token_id: int
    special_tokens: Mapping[str, int]  # those that `allow_special` lets a text write
    fingerprint: str  # a digest of the vocabulary: data tokenised with another one is refused

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of `text` after NFC. Only with `allow_special` does the name of a
        special token in it become that token's id.
        """
        return self._encode_nfc(nfc(text), allow_special)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text."""
        return [self.encode(text) for text in texts]

    def encode_documents(
        self, texts: Sequence[str]
    ) -> tuple[UInt32[np.ndarray, " N"], Int64[np.ndarray, " texts"]]:
        """The fast path for much text: the ids of all texts end to end, the end of text
        behind each, and how many ids each has, that one included.
        """
        eos = np.asarray([self.eos_token_id], dtype=np.uint32)
        arrays = [np.append(self._encode_nfc_array(nfc(text)), eos) for text in texts]
        lengths = np.asarray([len(array) for array in arrays], dtype=np.int64)
        return np.concatenate([eos[:0], *arrays]), lengths

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[int]:
        """The ids of all chunks joined; what the next could change is held back."""
        held: list[str] = []  # joined at a cut only, so that each chunk is looked at once
        edge = ""  # the last two characters held, in which a cut may only now show
        for chunk in chunks:
            seen = edge + chunk
            cuts = [match.start() for match in _SAFE_CUT.finditer(seen)]
            held.append(chunk)
            if cuts:
                text = "".join(held)
                cut = len(text) - len(seen) + cuts[-1]
                yield from self.encode(text[:cut])
                held = [text[cut:]]
            edge = seen[-2:]
        yield from self.encode("".join(held))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """`decode` piece by piece; a character comes out when it is whole."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            if piece := decoder.decode(self.token_bytes(token_id)):
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id; U+FFFD for an id that the vocabulary does not use."""

    @abstractmethod
    def _encode_nfc(self, text: str, allow_special: bool = False) -> list[int]:
        """`encode` for text that is in NFC already."""

    def _encode_nfc_array(self, text: str) -> UInt32[np.ndarray, " T"]:
        return np.asarray(self._encode_nfc(text), dtype=np.uint32)
