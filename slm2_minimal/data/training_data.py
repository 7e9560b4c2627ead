"""From the `[data]` table to a loader: what `slm2 prepare` has written, or texts that
are read, split and tokenised on the spot.

The second way holds everything in memory, which suits the embedded corpus and local
files up to some gigabytes.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from slm2_minimal.config import ConfigError, DataConfig, DataError, RunConfig
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.mixture import temperature_shares
from slm2_minimal.data.packing import Stream, TokenStream
from slm2_minimal.data.reading import read_source
from slm2_minimal.data.shards import open_prepared
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import Tokenizer, load_tokenizer

TokenCounts = Int[np.ndarray, " V"]


@dataclass(frozen=True)
class Assembled:
    """What training reads, and per language the held-out text and how often each id
    stands in the text that is not held out.
    """

    loader: Loader
    held_out: dict[str, TokenStream]
    token_counts: dict[str, TokenCounts]


def fitting_tokenizer(config: RunConfig) -> Tokenizer:
    """The run's tokenizer. Raises ConfigError where it has more ids than the model has
    rows.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}: the tokenizer {config.data.tokenizer!r}"
            f" has {tokenizer.vocab_size} ids; use at least as many"
        )
    return tokenizer


def assemble(config: DataConfig, tokenizer: Tokenizer) -> Assembled:
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
    if config.prepared is not None:
        prepared = open_prepared(config, tokenizer)
        data = Assembled(
            build_loader(config, prepared.streams, prepared.tokens),
            prepared.held_out,
            prepared.token_counts,
        )
    else:
        data = _on_the_spot(config, tokenizer)
    held_out = {
        language: stream for language, stream in data.held_out.items() if len(stream.tokens)
    }  # an empty text has no loss
    if config.validation_percent and not held_out:
        raise DataError(
            f"data.validation_percent = {config.validation_percent}: no text fell into the held-out"
            " part; raise it, or set it to 0 to train without"
            f" validation{', and prepare another folder' if config.prepared else ''}"
        )
    return Assembled(data.loader, held_out, data.token_counts)


def _on_the_spot(config: DataConfig, tokenizer: Tokenizer) -> Assembled:
    """Read, split and tokenise the sources."""
    streams: dict[str, TokenStream] = {}
    held_out: dict[str, list[list[int]]] = defaultdict(list)
    token_counts: dict[str, TokenCounts] = {}
    seen: set[Document] = set()  # sources may overlap; a held-out document is scored once
    for name, source in config.sources.items():
        documents = list(read_source(source))
        if not documents:
            raise DataError(
                f"data.sources.{name}: no document in {source.path or 'the corpus'}; check its"
                " path, languages and domains"
            )
        kept = [
            document
            for document in documents
            if not is_validation(document.id, config.validation_percent)
        ]
        ids = tokenizer.encode_batch([document.text for document in kept])
        streams[name] = TokenStream.from_documents(ids, tokenizer.eos_token_id)
        for language in dict.fromkeys(document.language for document in kept):
            own = [
                tokens
                for document, tokens in zip(kept, ids, strict=True)
                if document.language == language
            ]
            counts = np.bincount(
                TokenStream.from_documents(own, tokenizer.eos_token_id).tokens,
                minlength=tokenizer.vocab_size,
            )
            token_counts[language] = token_counts.get(language, 0) + counts
        fresh = [
            d for d in documents if is_validation(d.id, config.validation_percent) and d not in seen
        ]
        seen.update(fresh)
        for document, tokens in zip(
            fresh, tokenizer.encode_batch([document.text for document in fresh]), strict=True
        ):
            held_out[document.language].append(tokens)
    loader = build_loader(
        config, streams, {name: len(stream.tokens) for name, stream in streams.items()}
    )
    held = {
        language: TokenStream.from_documents(tokens, tokenizer.eos_token_id)
        for language, tokens in sorted(held_out.items())
    }
    return Assembled(loader, held, dict(sorted(token_counts.items())))


def build_loader(
    config: DataConfig, streams: Mapping[str, Stream], tokens: Mapping[str, int]
) -> Loader:
    """The loader over `streams` with the weights, stages, caps and subsets of the
    configuration; `tokens` counts each source's.
    """
    weights = {name: source.weight for name, source in config.sources.items()}
    if config.temperature is not None:
        weights = temperature_shares(
            {name: count or 1 for name, count in tokens.items()}, config.temperature
        )
    return Loader(
        streams,
        weights,
        config.seq_len,
        config.seed,
        stages={stage.start_tokens // config.seq_len: stage.weights for stage in config.stages},
        max_epochs={name: source.max_epochs for name, source in config.sources.items()},
        subset={name: source.subset for name, source in config.sources.items()},
    )
