"""Which text a `[data.sources]` entry names: one way to read it, for training on the
spot and for preparing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from slm2_minimal.config import DataConfig, SourceConfig
from slm2_minimal.text.corpus import stream_corpus
from slm2_minimal.text.documents import Document

Item = TypeVar("Item")

BATCH = 1 << 18  # characters of text whose words are held at a time


@dataclass(frozen=True)
class ReadingSettings:
    """The part of the `[data]` table that decides which text the shards hold.

    A manifest has it, since it may not change later; weights and epochs may.
    """

    sources: dict[str, dict[str, Any]]
    validation_percent: int

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        sources: dict[str, dict[str, Any]] = {
            name: {
                "path": source.path,
                "text_field": source.text_field,
                "languages": source.languages and list(source.languages),
                "domains": source.domains and list(source.domains),
            }
            for name, source in config.sources.items()
        }
        for name in sources if config.is_chat else []:
            # conversations are laid out for one length of sequences
            sources[name]["chat"] = {"format": config.chat, "seq_len": config.seq_len}
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
            chat=source.format == "chat",
        )


def batches(
    items: Iterable[Item], text: Callable[[Item], str] = str, characters: int | None = None
) -> Iterator[list[Item]]:
    """Successive items in lists of about so many characters of their texts, or BATCH.

    A longer text comes alone or last. Items are texts themselves, unless `text` gives
    the text of one.
    """
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(text(item)) + 1
        if size >= (characters or BATCH):
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch
