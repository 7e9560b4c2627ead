"""What the tests of `slm2 prepare` begin with, and how they look at what it wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slm2_minimal.config import RunConfig
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import Document
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

Make = Callable[..., RunConfig]


def quiet(line: str) -> None:
    """Progress that nobody reads."""


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
