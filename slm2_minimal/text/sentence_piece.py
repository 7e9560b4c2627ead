"""SentencePiece models for small runs: BPE with byte fallback and split digits."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from slm2_minimal.config import DataError
from slm2_minimal.config.paths import expand
from slm2_minimal.files import whole_file
from slm2_minimal.text.documents import nfc
from slm2_minimal.text.interface import UNKNOWN, Tokenizer

SPACE_SYMBOL = "\u2581"  # how SentencePiece writes a space
# Training drops lines with this sign, or of more bytes than MAX_LINE, in silence.
SEPARATOR = "\u2585"
MAX_LINE = 4192
_PART = re.compile(rf".{{1,{MAX_LINE // 4}}}(?![^ ])|.{{1,{MAX_LINE // 4}}}")  # up to a space


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; its special tokens are the control symbols."""

    def __init__(self, model: bytes, name: str) -> None:
        """Raises RuntimeError for bytes that are no model."""
        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(model)  # the constructor takes an empty one for none
        self.name = name
        self.model = model
        self.vocab_size = self.processor.vocab_size()
        self.eos_token_id = self.processor.eos_id()
        self.fingerprint = hashlib.sha256(model).hexdigest()[:16]
        self.special_tokens = {
            self.processor.id_to_piece(i): i
            for i in range(self.vocab_size)
            if self.processor.is_control(i)
        }
        as_bytes = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode()]
        self._space_symbol = {SPACE_SYMBOL: as_bytes}  # as a piece, it would come back as a space

    def _encode_nfc(self, text: str, allow_special: bool = False) -> list[int]:
        # what SentencePiece must not see as text
        known = dict(self._space_symbol)
        if allow_special:
            known |= {name: [token_id] for name, token_id in self.special_tokens.items()}
        longest_first = sorted(known, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))

        ids: list[int] = []
        for part in re.split(f"({pattern})", text):
            ids += known[part] if part in known else self.processor.encode(part)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size or self.processor.is_unknown(token_id):
            return UNKNOWN
        if self.processor.is_control(token_id):
            return b""
        piece = self.processor.id_to_piece(token_id)
        if self.processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        return piece.replace(SPACE_SYMBOL, " ").encode()


def train_sentencepiece(texts: Iterable[str], path: str | Path, vocab_size: int) -> None:
    """Train a model and write it to `path`. The same texts give the same bytes.

    Text goes through as it is, so that decoding gives it back. Id 0 closes documents.
    Raises DataError where SentencePiece refuses, as for too large a `vocab_size`.
    """
    model = io.BytesIO()
    path = expand(str(path), "path")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts), model_writer=model,
            vocab_size=vocab_size, model_type="bpe",
            byte_fallback=True, split_digits=True, user_defined_symbols=["\n"],
            normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            eos_id=0, unk_id=1, bos_id=-1, pad_id=-1,
            character_coverage=1.0, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise DataError(f"vocab_size = {vocab_size}: SentencePiece says: {reason}") from None
    with whole_file(path) as file:
        file.write(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The lines of all texts, cut where SentencePiece would drop them: before a space,
    so that all words stay, where there is one.
    """
    for text in texts:
        for line in nfc(text).replace(SEPARATOR, "\n").splitlines():
            parts = [line] if len(line.encode()) <= MAX_LINE else _PART.findall(line)
            yield from (part for part in parts if part.strip())
