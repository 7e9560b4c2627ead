"""What the tests of tokenizers read: the ranks, and texts to train on."""

import pytest

from slm2_minimal.text import arcade as module
from slm2_minimal.text.corpus import load_corpus


@pytest.fixture(scope="module")
def ranks_file() -> bytes:
    """The bytes of cl100k's ranks file."""
    return module.find_ranks()


@pytest.fixture(scope="module")
def some_texts() -> list[str]:
    return [document.text for document in load_corpus(languages=["en"], limit=10)]
