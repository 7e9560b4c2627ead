"""What the tests of tokenizers read: texts to train on."""

import pytest

from slm2_minimal.text.corpus import load_corpus


@pytest.fixture(scope="module")
def some_texts() -> list[str]:
    return [document.text for document in load_corpus(languages=["en"], limit=10)]
