"""Every document is trained on or held out, whatever batches it comes in."""

import numpy as np
import pytest

from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.split import Split
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

DOCUMENTS = [
    Document(f"d{number}", language, "text", "", f"{language} {number}")
    for number in range(40)
    for language in ("en", "de")
]
HELD_OUT = [document for document in DOCUMENTS if is_validation(document.id, 20)]
TRAINED = [document for document in DOCUMENTS if document not in HELD_OUT]


def expected(documents: list[Document], tokenizer: SentencePieceTokenizer) -> TokenStream:
    ids = [tokenizer.encode(document.text) for document in documents]
    return TokenStream.from_documents(ids, tokenizer.eos_token_id)


@pytest.mark.parametrize("size", [1, 7, 80])
def test_documents_by_hand(tiny: SentencePieceTokenizer, size: int) -> None:
    split = Split(tiny, 20)
    batches = [DOCUMENTS[begin : begin + size] for begin in range(0, len(DOCUMENTS), size)]
    trained = TokenStream.joined([split.add([]), *map(split.add, batches)])
    assert trained.digest() == expected(TRAINED, tiny).digest()

    assert list(split.held_out()) == ["de", "en"]
    for language, stream in split.held_out().items():
        own = [document for document in HELD_OUT if document.language == language]
        assert stream.digest() == expected(own, tiny).digest()
        own = [document for document in TRAINED if document.language == language]
        counts = np.bincount(expected(own, tiny).tokens, minlength=tiny.vocab_size)
        assert split.token_counts[language].tolist() == counts.tolist()


def test_empty_texts_are_on_neither_side(tiny: SentencePieceTokenizer) -> None:
    split = Split(tiny, 20)
    empty = [Document(document.id, "fr", "text", "", "") for document in DOCUMENTS]
    assert split.add(empty).num_tokens == 0
    assert (split.held_out(), split.token_counts) == ({}, {})
