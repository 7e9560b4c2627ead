"""What the tests of loaders read: numbered tokens, and a loader over them."""

from collections.abc import Mapping
from dataclasses import astuple

import torch

from slm2_minimal.data.loader import Batch, Loader
from slm2_minimal.data.packing import TokenStream

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
