"""What the tests of `slm2 prepare` begin with, and how they look at what it wrote."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from slm2_minimal.config import RunConfig
from slm2_minimal.prepare import handover
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import Document
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

Make = Callable[..., RunConfig]


class _Call(logging.Handler):
    def __init__(self, call: Callable[[str], object]) -> None:
        super().__init__()
        self.call = call

    def emit(self, record: logging.LogRecord) -> None:
        self.call(record.getMessage())


@contextmanager
def listening(call: Callable[[str], object]) -> Iterator[None]:
    """Every line of the package's log goes to `call`, as it comes."""
    logger, handler = logging.getLogger("slm2_minimal"), _Call(call)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def through_json(content: Any) -> Any:
    """A record as the next stage reads it."""
    adapter = handover.adapter(type(content))
    return adapter.validate_python(
        json.loads(json.dumps(adapter.dump_python(content, mode="json")))
    )


def lines(documents: list[dict[str, Any]]) -> bytes:
    return b"".join(
        json.dumps(document, ensure_ascii=False).encode() + b"\n" for document in documents
    )


def english(count: int) -> list[Document]:
    return load_corpus(languages=["en"])[:count]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def texts(folder: str | Path, name: str, tokenizer: SentencePieceTokenizer) -> list[str]:
    """The documents of a source's shards, or those held out of a language, as text."""
    manifest, found = json.loads((Path(folder) / "manifest.json").read_text()), []
    shards = manifest["sources"].get(name) or [manifest["held_out"][name]]
    for path in (Path(folder) / f"{shard['name']}.tokens.npy" for shard in shards):
        tokens, starts = np.load(path), np.load(str(path).replace("tokens", "starts"))
        ends = [*starts[1:].tolist(), len(tokens)][: len(starts)]
        found += [
            tokenizer.decode(tokens[a : b - 1].tolist())
            for a, b in zip(starts.tolist(), ends, strict=True)
        ]
    return found
