"""From the `[data]` table to a loader: what `slm2 prepare` has written, or texts that
are read, split and tokenised on the spot.

The second way holds everything in memory, which suits the embedded corpus and local
files up to some gigabytes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from slm2_minimal.config import ConfigError, DataConfig, DataError
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.mixture import temperature_shares
from slm2_minimal.data.packing import Stream, TokenStream
from slm2_minimal.data.reading import read_source
from slm2_minimal.data.shards import TokenisedSources, open_prepared
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import Tokenizer

TokenCounts = Int[np.ndarray, " V"]


@dataclass(frozen=True)
class TrainingData:
    """What training reads, and per language the held-out text and how often each id
    stands in the text that is not held out.
    """

    loader: Loader
    held_out: dict[str, TokenStream]
    token_counts: dict[str, TokenCounts]


def open_training_data(config: DataConfig, tokenizer: Tokenizer) -> TrainingData:
    """Build the loader and the validation streams.

    The held-out documents are chosen by id, and parallel documents share their id: no
    translation of a validation text is trained on.

    Raises:
        ConfigError: no sources are named. DataError: a source is empty or cannot be
        read, nothing is held out though `validation_percent` asks for it, or the
        prepared data is missing, damaged, or of another tokenizer.
    """
    if not config.sources:
        raise ConfigError(
            "data.sources = {}: nothing to read; name sources, for example --data.sources.web.path"
            " FOLDER"
        )
    if config.prepared is None:
        sources = tokenise_sources(config, tokenizer)
    else:
        sources = open_prepared(config, tokenizer)
    loader = build_loader(config, sources.streams)

    # an empty text has no loss
    held_out = {name: stream for name, stream in sources.held_out.items() if stream.num_tokens}
    if config.validation_percent and not held_out:
        remedy = ", and prepare another folder" if config.prepared else ""
        raise DataError(
            f"data.validation_percent = {config.validation_percent}: no text fell into the held-out"
            f" part; raise it, or set it to 0 to train without validation{remedy}"
        )
    return TrainingData(loader, held_out, sources.token_counts)


def tokenise_sources(config: DataConfig, tokenizer: Tokenizer) -> TokenisedSources:
    """Read, split and tokenise the sources. Raises DataError for one without text."""
    eos = tokenizer.eos_token_id
    streams: dict[str, TokenStream] = {}
    held_out: dict[str, list[list[int]]] = defaultdict(list)
    token_counts: dict[str, TokenCounts] = {}
    seen: set[Document] = set()  # sources may overlap; a document is validated on once

    for name, source in config.sources.items():
        documents = list(read_source(source))
        if not documents:
            raise DataError(
                f"data.sources.{name}: no document in {source.path or 'the corpus'}; check its"
                " path, languages and domains"
            )
        trained = []
        validated = []
        for document in documents:
            if not is_validation(document.id, config.validation_percent):
                trained.append(document)
            elif document not in seen:
                validated.append(document)
        seen.update(validated)

        # what is trained on, counted by language
        ids = tokenizer.encode_batch([document.text for document in trained])
        streams[name] = TokenStream.from_documents(ids, eos)
        for language, own in _by_language(trained, ids).items():
            tokens = TokenStream.from_documents(own, eos).tokens
            counts = np.bincount(tokens, minlength=tokenizer.vocab_size)
            token_counts[language] = token_counts.get(language, 0) + counts

        # what is held out, of all sources together
        ids = tokenizer.encode_batch([document.text for document in validated])
        for language, own in _by_language(validated, ids).items():
            held_out[language] += own

    by_language = {
        name: TokenStream.from_documents(held_out[name], eos) for name in sorted(held_out)
    }
    return TokenisedSources(streams, by_language, dict(sorted(token_counts.items())))


def _by_language(
    documents: Sequence[Document], ids: Sequence[list[int]]
) -> dict[str, list[list[int]]]:
    groups: dict[str, list[list[int]]] = defaultdict(list)
    for document, tokens in zip(documents, ids, strict=True):
        groups[document.language].append(tokens)
    return groups


def build_loader(config: DataConfig, streams: Mapping[str, Stream]) -> Loader:
    """The loader with the weights, stages, caps and subsets of the configuration."""
    weights = {name: source.weight for name, source in config.sources.items()}
    if config.temperature is not None:
        sizes = {name: stream.num_tokens or 1 for name, stream in streams.items()}
        weights = temperature_shares(sizes, config.temperature)
    return Loader(
        streams,
        weights,
        config.seq_len,
        config.seed,
        stages={stage.start_tokens // config.seq_len: stage.weights for stage in config.stages},
        max_epochs={name: source.max_epochs for name, source in config.sources.items()},
        subset={name: source.subset for name, source in config.sources.items()},
    )
