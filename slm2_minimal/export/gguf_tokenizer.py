"""A tokenizer as llama.cpp has it, inside a GGUF file.

llama.cpp then gives our ids for text in NFC, which it does not make itself: what calls
it must. With SentencePiece it takes U+2581 for a space.
"""

from typing import Any

from slm2_minimal.config import DataError
from slm2_minimal.export.tokenizer_files import proto, why_not_exact
from slm2_minimal.text.arcade import UNUSED_ID, Arcade100k
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.merges import merges, to_chars
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer


def add_tokenizer(writer: Any, tokenizer: Tokenizer, rows: int) -> None:
    """Add a tokenizer to the gguf library's `writer`. An id below `rows`, those of the
    embedding, that it does not use gets a name and the type that says so.

    Raises:
        DataError: llama.cpp would give other ids than this tokenizer.
    """
    from gguf import TokenType

    if isinstance(tokenizer, Arcade100k):
        known = _add_arcade(writer, tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        known = _add_sentence_piece(writer, tokenizer, rows)
    else:
        raise DataError(f"tokenizer = {tokenizer.name!r}: is none that llama.cpp has; use another")

    tokens = [known.get(i, (f"[PAD{i}]", TokenType.UNUSED)) for i in range(rows)]
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([token_type for _, token_type in tokens])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)


def _add_arcade(writer: Any, tokenizer: Arcade100k) -> dict[int, tuple[str, int]]:
    """Byte-level BPE, its pattern by the name that llama.cpp has for it; the text and
    the type of each id.
    """
    from gguf import TokenType

    ranks = {tokenizer.token_bytes(rank): rank for rank in range(UNUSED_ID)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("stablelm2")
    writer.add_token_merges([f"{to_chars(a)} {to_chars(b)}" for a, b in merges(ranks)])

    normal = {rank: (to_chars(token), TokenType.NORMAL) for token, rank in ranks.items()}
    special = {i: (name, TokenType.CONTROL) for name, i in tokenizer.special_tokens.items()}
    return {**normal, **special}


def _add_sentence_piece(
    writer: Any, tokenizer: SentencePieceTokenizer, rows: int
) -> dict[int, tuple[str, int]]:
    """SentencePiece's BPE, by its scores; the text and the type of each id. The types
    have the same numbers in both programs.
    """
    reason = why_not_exact(tokenizer)
    if reason is not None:
        raise DataError(
            f"tokenizer = {tokenizer.name!r}: {reason}, and llama.cpp may give other ids; train one"
            " with train_sentencepiece, or use --format hf"
        )
    pieces = proto(tokenizer).pieces
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(False)
    writer.add_unk_token_id(tokenizer.processor.unk_id())

    scores = [piece.score for piece in pieces]
    writer.add_token_scores(scores + [min(scores)] * (rows - len(scores)))
    return {i: (piece.piece, piece.type) for i, piece in enumerate(pieces)}
