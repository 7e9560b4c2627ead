"""Conversations as ids, with a mark at each id that is not learned.

Packed, they may not be cut as texts are: what follows a cut would answer a question
that is not there. So one that is longer than a sequence loses turns at its end, and
`TokenStream.laid_out` puts them where no cut falls into one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from jaxtyping import Int64, UInt32

from slm2_minimal.config import DataConfig
from slm2_minimal.data.packing import UNLEARNED, TokenStream
from slm2_minimal.text.chat import Format, Message, check_format, render
from slm2_minimal.text.conversations import messages_of
from slm2_minimal.text.tokenizer import Tokenizer


class Conversations:
    """Encodes conversations for sequences of one length.

    Attributes:
        counts: conversations that were "shortened" to whole turns, and "left out" since
            their first exchange is too long already; of what was laid out, the tokens,
            those "learned" and the "padding".
    """

    def __init__(self, tokenizer: Tokenizer, format: Format, seq_len: int) -> None:
        """Raises DataError for a format that the tokenizer has no ids for."""
        check_format(format, tokenizer, "data.chat")
        self.tokenizer, self.format, self.seq_len = tokenizer, format, seq_len
        self.counts = Counter[str]()

    @classmethod
    def of(cls, config: DataConfig, tokenizer: Tokenizer) -> Self | None:
        """For a `[data]` table; None where its sources are text."""
        return cls(tokenizer, config.chat, config.seq_len) if config.is_chat else None

    def encode_documents(
        self, texts: Sequence[str]
    ) -> tuple[UInt32[np.ndarray, " N"], Int64[np.ndarray, " texts"]]:
        """As `Tokenizer.encode_documents`, for what `text.conversations` makes: the ids
        of all, with UNLEARNED where they are that, and how many each has, 0 for one
        that is left out.
        """
        parts = [self._encode(messages_of(text)) for text in texts]
        lengths = np.asarray([len(part) for part in parts], dtype=np.int64)
        return np.concatenate([np.empty(0, dtype=np.uint32), *parts]), lengths

    def _encode(self, messages: Sequence[Message]) -> UInt32[np.ndarray, " T"]:
        """Of one, up to the last answer that ends within a sequence."""
        whole = self._marked(messages)
        if len(whole) <= self.seq_len:
            return whole
        kept = whole[:0]
        for end, message in enumerate(messages, 1):
            if message["role"] == "assistant":
                beginning = self._marked(messages[:end])
                if len(beginning) > self.seq_len:
                    break
                kept = beginning
        self.counts["shortened" if len(kept) else "left out"] += 1
        return kept

    def _marked(self, messages: Sequence[Message]) -> UInt32[np.ndarray, " T"]:
        ids, learned = render(messages, self.format, tokenizer=self.tokenizer)
        return np.asarray(ids, dtype=np.uint32) | np.where(learned, np.uint32(0), UNLEARNED)

    def lay_out(self, stream: TokenStream) -> TokenStream:
        """The stream as it is trained on."""
        laid_out = stream.laid_out(self.seq_len)
        tokens, padding = laid_out.num_tokens, laid_out.num_tokens - stream.num_tokens
        learned = int((stream.tokens < UNLEARNED).sum())
        self.counts.update(tokens=tokens, learned=learned, padding=padding)
        return laid_out


def summary(counts: Mapping[str, int]) -> str:
    """The counts of a `Conversations` in words."""
    tokens = max(1, counts.get("tokens", 0))
    return (
        f"of the tokens {counts.get('learned', 0) / tokens:.1%} are learned and"
        f" {counts.get('padding', 0) / tokens:.1%} are padding; conversations cut to the turns"
        f" that a sequence holds: {counts.get('shortened', 0):,}, left out because it holds none:"
        f" {counts.get('left out', 0):,}"
    )
