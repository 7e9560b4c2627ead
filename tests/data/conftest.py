"""What the tests of data read: numbered tokens, and texts that say who they are."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch

from slm2_minimal.config import DataConfig, RunConfig, SourceConfig
from slm2_minimal.data.loader import Batch, Loader
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.prepare.run import prepare
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

# Tokens that are all different, and a loader over three sources of them

SEQ_LEN = 8
WEIGHTS = {"a": 5, "b": 2, "c": 1}
LENGTHS = {
    "a": 83,
    "b": 40,
    "c": 11,
}  # tokens: 11, 5 and 2 sequences, the first and the last with a padded tail


def stream(length: int, first: int) -> TokenStream:
    """`length` tokens in documents of 1 to 7 and their end, all different but for the
    ends; the end-of-text token is 0.
    """
    documents, token = [], first
    while length > 0:
        size = min(length, 2 + (token * 7) % 6)
        size += length - size == 1  # a document has a token and the end-of-text token
        documents.append(list(range(token, token + size - 1)))
        token, length = token + size, length - size
    return TokenStream.from_documents(documents, 0)


def make(
    lengths: Mapping[str, int] = LENGTHS,
    weights: Mapping[str, int] = WEIGHTS,
    seq_len: int = SEQ_LEN,
    seed: int = 7,
) -> Loader:
    streams = {name: stream(n, 1000 * i + 1) for i, (name, n) in enumerate(lengths.items())}
    return Loader(
        streams,
        {name: weight for name, weight in weights.items() if name in lengths},
        seq_len,
        seed,
    )


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(astuple(a), astuple(b), strict=True))


# Texts that say who they are, and `[data]` tables over them

IDS = [f"doc-{i}" for i in range(40)]
HELD_OUT = [i for i in IDS if is_validation(i, 20)]


def texts(stream: TokenStream, tokenizer: SentencePieceTokenizer) -> list[str]:
    """The documents of a stream as text."""
    ends = [*stream.starts[1:].tolist(), len(stream.tokens)]
    return [
        tokenizer.decode(stream.tokens[a : b - 1].tolist())
        for a, b in zip(stream.starts.tolist(), ends, strict=True)
    ]


def write(path: Path, ids: Iterable[str], language: str, note: str = "") -> str:
    """A file whose texts say who they are."""
    records = [{"id": i, "language": language, "text": f"{language} {i}{note}"} for i in ids]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(percent: int = 20, **sources: SourceConfig) -> DataConfig:
    return DataConfig(tokenizer="tiny", seq_len=16, validation_percent=percent, sources=sources)


def prepared(folder: Path, data: dict[str, Any], **options: Any) -> DataConfig:
    """What `prepare` makes of a `[data]` table: its configuration."""
    table = {"min_characters": 1, "duplicates": "keep", "workers": 1} | options
    run = RunConfig.from_dict(
        {
            "data": {"tokenizer": "tiny", "prepared": str(folder / "prepared")} | data,
            "prepare": table,
        }
    )
    prepare(run)
    return run.data


@pytest.fixture
def en(tmp_path: Path) -> str:
    return write(tmp_path / "en.jsonl", IDS, "en")


@pytest.fixture
def de(tmp_path: Path) -> str:
    return write(tmp_path / "de.jsonl", IDS, "de")
