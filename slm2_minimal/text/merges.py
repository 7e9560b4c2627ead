"""Byte-pair encoding as other programs write it: merges in place of ranks, characters
that can be seen in place of bytes.
"""

import itertools
from collections.abc import Mapping
from typing import AnyStr

# GPT-2's character for each byte: the byte's own in Latin-1 where it can be seen, else
# the next one from U+0100 on.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
BYTE_CHARS = {byte: chr(byte) for byte in _SEEN} | {
    byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)
}
_CHAR_BYTES = {char: byte for byte, char in BYTE_CHARS.items()}


def to_chars(token: bytes) -> str:
    """A token's bytes as a tokenizer.json or a GGUF file shows them."""
    return "".join(BYTE_CHARS[byte] for byte in token)


def from_chars(shown: str) -> bytes:
    """The bytes that `to_chars` showed. Raises KeyError for any other character."""
    return bytes(_CHAR_BYTES[char] for char in shown)


def merges(ranks: Mapping[AnyStr, int]) -> list[tuple[AnyStr, AnyStr]]:
    """What each merge joins, in the order of the ranks.

    A rank names the token that a merge makes, and not its two halves: they are what is
    left of the token once every merge of a lower rank is done. Where more than two
    parts are left, no text is ever joined to that token, and it has no merge.
    """
    found = []
    lower: dict[AnyStr, int] = {}
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = _parts(token, lower)
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
        lower[token] = ranks[token]
    return found


def _parts(token: AnyStr, ranks: Mapping[AnyStr, int]) -> list[AnyStr]:
    """The bytes or characters of a token, joined as far as the ranks go."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        pairs = enumerate(itertools.pairwise(parts))
        known = [(ranks[a + b], i) for i, (a, b) in pairs if a + b in ranks]
        if not known:
            return parts
        _, i = min(known)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
