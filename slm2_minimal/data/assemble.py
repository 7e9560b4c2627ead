"""From the `[data]` table to a loader: read the sources, hold out the validation documents, tokenise, lay out.

Everything is held in memory, which suits the embedded corpus and local files up to some gigabytes.
"""

from collections import defaultdict
from dataclasses import dataclass

from slm2_minimal.config import ConfigError, DataConfig, DataError
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.text.corpus import Document, is_validation, load_corpus
from slm2_minimal.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Assembled:
    """What training reads, and per language what was held out and what was not."""

    loader: Loader
    held_out: dict[str, TokenStream]
    training: dict[str, TokenStream]


def assemble(config: DataConfig, tokenizer: Tokenizer) -> Assembled:
    """Build the loader and the validation streams.

    The held-out documents are chosen by id, and parallel documents share their id: no translation of a validation text is trained on.

    Raises:
        ConfigError: no sources are named. DataError: a source is empty or cannot be read.
    """
    if not config.sources:
        raise ConfigError("data.sources = {}: nothing to read; name sources, for example --data.sources.web.path FOLDER")
    streams, weights = {}, {}
    held_out: dict[str, list[list[int]]] = defaultdict(list)
    training: dict[str, list[list[int]]] = defaultdict(list)
    seen: set[Document] = set()  # sources may overlap; a held-out document is scored once
    for name, source in config.sources.items():
        documents = load_corpus(source.path, languages=source.languages, domains=source.domains)
        kept = [document for document in documents if not is_validation(document.id, config.validation_percent)]
        ids = tokenizer.encode_batch([document.text for document in kept])
        streams[name], weights[name] = TokenStream.from_documents(ids, tokenizer.eos_token_id), source.weight
        for document, tokens in zip(kept, ids, strict=True):
            training[document.language].append(tokens)
        fresh = [d for d in documents if is_validation(d.id, config.validation_percent) and d not in seen]
        seen.update(fresh)
        for document, tokens in zip(fresh, tokenizer.encode_batch([document.text for document in fresh]), strict=True):
            held_out[document.language].append(tokens)
    loader = Loader(streams, weights, config.seq_len, config.seed)
    if config.validation_percent and not held_out:
        raise DataError(
            f"data.validation_percent = {config.validation_percent}: no document fell into the held-out part; "
            "raise it, or set it to 0 to train without validation"
        )
    eos = tokenizer.eos_token_id
    return Assembled(
        loader,
        {language: TokenStream.from_documents(tokens, eos) for language, tokens in sorted(held_out.items())},
        {language: TokenStream.from_documents(tokens, eos) for language, tokens in sorted(training.items())},
    )
