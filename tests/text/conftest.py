"""What the tests of tokenizers read: texts to train on, and texts that can go wrong."""

import numpy as np
import pytest
from hypothesis import strategies as st

from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def some_texts() -> list[str]:
    return [document.text for document in load_corpus(languages=["en"], limit=10)]


# Characters at which splitting, normalising or cutting can go wrong, and strings that
# look like what they are not.
PIECES = [
    *" \n\r\t\v\f\x00\x1c\x85\xa0\u1680\u2003\u2028\u3000\ufeff\u200b\u200d\u2581",
    *"aZsSſtTrReElLdDmMéßœñÅΩж'’", "e\u0301", *"\u0301\u0316\u0327\u0345\u0340",
    "か\u3099", *"漢字가ᄀ\u1161\u11a8",
    *"019٣५²½Ⅷ", *'.,!?<|>_-(){}"`#', "😀", "👩\u200d💻", "🇩🇪",
    "  ", "\n\n", "\r\n", " \n", "\n ", "'s", "'LL", " the", "tion",
    "<|endoftext|>", "</s>", "<unk>", "<0x0A>",
]  # fmt: skip
nasty_text = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
any_text = st.one_of(st.text(max_size=60), nasty_text)


def as_document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text by the fast path, without the end of text behind them."""
    ids, lengths = tokenizer.encode_documents([text])
    assert ids.dtype == np.uint32
    assert lengths.tolist() == [len(ids)]
    assert ids[-1] == tokenizer.eos_token_id
    return ids[:-1]
