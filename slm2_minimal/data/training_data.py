"""From the `[data]` table to a loader: what `slm2 prepare` has written, or texts that
are tokenised on the spot and held in memory, which suits the embedded corpus.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from jaxtyping import Int

from slm2_minimal.config import ConfigError, DataConfig, DataError
from slm2_minimal.data.conversations import Conversations, summary
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.mixture import temperature_shares
from slm2_minimal.data.packing import Stream, TokenStream
from slm2_minimal.data.reading import batches, read_source
from slm2_minimal.data.shards import TokenisedSources, open_prepared
from slm2_minimal.data.split import Split
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BATCH = 4_000_000  # characters tokenised at a time
MUCH = 50_000_000  # characters that are better prepared
SECONDS = 5.0  # between two lines of progress


@dataclass(frozen=True)
class TrainingData:
    """What training reads, and per language the held-out text and how often each id
    stands in the text that is not held out.
    """

    loader: Loader
    held_out: dict[str, TokenStream]
    token_counts: dict[str, Int[np.ndarray, " V"]]


def open_training_data(config: DataConfig, tokenizer: Tokenizer) -> TrainingData:
    """Build the loader and the validation streams.

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
    unscored = sorted(held_out.keys() - sources.token_counts.keys())
    if unscored:
        log.warning(
            f"data.validation_percent = {config.validation_percent}: {len(unscored)} of"
            f" {len(held_out)} held-out languages, such as {unscored[0]!r}, have no text to train"
            " on and are not scored; give the records one language"
        )
    return TrainingData(loader, held_out, sources.token_counts)


def tokenise_sources(config: DataConfig, tokenizer: Tokenizer) -> TokenisedSources:
    """Read, split and tokenise the sources; records that cannot be used are counted and
    said. Raises DataError for a source without documents.
    """
    conversations = Conversations.of(config, tokenizer)
    split = Split(tokenizer, config.validation_percent, conversations)
    streams: dict[str, TokenStream] = {}
    seen: set[Document] = set()  # sources may overlap; a document is validated on once
    progress = _Progress()

    for name, source in config.sources.items():
        skipped = Counter[str]()
        parts: list[TokenStream] = []
        validated: list[Document] = []
        for documents in batches(read_source(source, skipped), attrgetter("text"), BATCH):
            parts.append(split.add([document for document in documents if document not in seen]))
            validated += (d for d in documents if is_validation(d.id, config.validation_percent))
            progress.add(documents)

        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
        if not parts:
            raise DataError(
                f"data.sources.{name}: no document in {source.path or 'the corpus'} (left out:"
                f" {left_out or 'none'}); check its path, languages and domains"
            )
        if left_out:
            log.warning(f"data.sources.{name}: unusable records are left out: {left_out}")
        streams[name] = TokenStream.joined(parts)
        seen.update(validated)

    held_out = split.held_out()
    if conversations is not None:
        streams = {name: conversations.lay_out(stream) for name, stream in streams.items()}
        log.info(summary(conversations.counts))
        held_out = {name: text.laid_out(config.seq_len) for name, text in held_out.items()}
    return TokenisedSources(streams, held_out, dict(sorted(split.token_counts.items())))


class _Progress:
    """Says how far the reading is, and, once, that much text should be prepared."""

    def __init__(self) -> None:
        self.characters = 0
        self.said = time.monotonic()

    def add(self, documents: list[Document]) -> None:
        before = self.characters
        self.characters += sum(len(document.text) for document in documents)
        if before < MUCH <= self.characters:
            log.warning(
                f"data.prepared = None: over {MUCH:,} characters are tokenised at every start and"
                " held in memory; slm2 prepare does it once"
            )
        if time.monotonic() - self.said > SECONDS:
            log.info(f"tokenised {self.characters:,} characters so far")
            self.said = time.monotonic()


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
