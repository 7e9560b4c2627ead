"""Which text a `[data.sources]` entry names: one way to read it, for training on the
spot and for preparing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from slm2_minimal.config import DataConfig, SourceConfig
from slm2_minimal.text.corpus import stream_corpus
from slm2_minimal.text.documents import Document


@dataclass(frozen=True)
class ReadingSettings:
    """The part of the `[data]` table that decides which text the shards hold.

    A manifest has it, since it may not change later; weights and epochs may.
    """

    sources: dict[str, dict[str, Any]]
    validation_percent: int

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        sources = {
            name: {
                "path": source.path,
                "text_field": source.text_field,
                "languages": source.languages and list(source.languages),
                "domains": source.domains and list(source.domains),
            }
            for name, source in config.sources.items()
        }
        return cls(sources, config.validation_percent)


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
