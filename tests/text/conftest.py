"""The ranks that the tests of tokenizers read."""

import pytest

from slm2_minimal.text import tokenizer as module


@pytest.fixture(scope="module")
def ranks_file() -> bytes:
    """The bytes of cl100k's ranks file."""
    return module._find_ranks()
