"""Which text a `[data.sources]` entry names: one way to read it, for training on the
spot and for preparing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from slm2_minimal.config import DataConfig, SourceConfig
from slm2_minimal.text.corpus import stream_corpus
from slm2_minimal.text.documents import Document


def reading_settings(config: DataConfig) -> dict[str, Any]:
    """The part of the `[data]` table that decides which text the shards hold.

    A manifest has it, since it may not change later; weights and epochs may.
    """
    sources = {
        name: {
            "path": source.path,
            "text_field": source.text_field,
            "languages": source.languages and list(source.languages),
            "domains": source.domains and list(source.domains),
        }
        for name, source in config.sources.items()
    }
    return {"sources": sources, "validation_percent": config.validation_percent}


def read_source(
    source: SourceConfig,
    skipped: Counter[str] | None = None,
    paths: Sequence[str | None] | None = None,
) -> Iterator[Document]:
    """The documents of a source, as `text.corpus.stream_corpus` reads them.

    `paths` are some of its files, where several tasks share the source: None is the
    embedded corpus, and a Hub id stands for itself.
    """
    for path in [source.path] if paths is None else paths:
        yield from stream_corpus(
            path,
            languages=source.languages,
            domains=source.domains,
            text_field=source.text_field,
            skipped=skipped,
            root=source.path,
        )
