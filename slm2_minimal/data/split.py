"""Documents as ids, split into what is trained on and what is held out."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, Shaped

from slm2_minimal.data.conversations import Conversations
from slm2_minimal.data.packing import UNLEARNED, TokenStream
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import Tokenizer


class Split:
    """Tokenises documents and holds out about `percent` of them, chosen by id.

    Parallel documents share their id: no translation of a held-out text is trained on.

    Attributes:
        token_counts: by language, how often each id stands in what is trained on; of
            conversations, in what is learned.
    """

    def __init__(
        self, tokenizer: Tokenizer, percent: int, conversations: Conversations | None = None
    ) -> None:
        """`conversations` encodes them; None: documents are texts."""
        self.tokenizer = tokenizer
        self.encode = (conversations or tokenizer).encode_documents
        self.percent = percent
        self.token_counts: dict[str, Int[np.ndarray, " V"]] = {}
        self._held_out: dict[str, list[TokenStream]] = defaultdict(list)

    def add(self, documents: Sequence[Document]) -> TokenStream:
        """Returns those to train on. Empty documents are left out."""
        ids, lengths = self.encode([document.text for document in documents])
        texts = TokenStream.from_lengths(ids, lengths, self.tokenizer.eos_token_id)
        held = [is_validation(document.id, self.percent) for document in documents]
        held_out = np.array(held, dtype=bool)
        languages = np.array([document.language for document in documents], dtype=object)

        # An end of text alone teaches nothing
        full = lengths > 1
        trained = texts.only(full & ~held_out)
        for language, own in _by_language(trained, languages[full & ~held_out]):
            learned = own.tokens[own.tokens < UNLEARNED]
            counts = np.bincount(learned, minlength=self.tokenizer.vocab_size)
            self.token_counts[language] = self.token_counts.get(language, 0) + counts
        rest = texts.only(full & held_out)
        for language, own in _by_language(rest, languages[full & held_out]):
            self._held_out[language].append(own)
        return trained

    def held_out(self) -> dict[str, TokenStream]:
        """The held-out documents of each language so far, languages in order."""
        by_language = sorted(self._held_out.items())
        return {language: TokenStream.joined(streams) for language, streams in by_language}


def _by_language(
    texts: TokenStream, languages: Shaped[np.ndarray, " documents"]
) -> Iterator[tuple[str, TokenStream]]:
    for language in sorted(set(languages)):
        yield language, texts.only(languages == language)
