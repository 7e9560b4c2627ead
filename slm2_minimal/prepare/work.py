"""What `slm2 prepare` does to one source or one unit: read it, make its keys, tokenise
what stays of it.

Each function writes files that are whole or absent, and does nothing where they are
there. It knows of no other unit: any number of processes can share the work, on one
machine (`run`) or on many (`cluster`).
"""

import contextlib
import functools
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from slm2_minimal.config import BenchmarkConfig, DataConfig, PrepareConfig
from slm2_minimal.data.conversations import Conversations
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.reading import batches
from slm2_minimal.data.shards import Shard, write_shard
from slm2_minimal.data.split import Split
from slm2_minimal.files import write_arrays
from slm2_minimal.prepare import handover
from slm2_minimal.prepare.decontaminate import BenchmarkIndex, Contamination, clean
from slm2_minimal.prepare.duplicates import write_keys
from slm2_minimal.prepare.minhash import LSH
from slm2_minimal.prepare.units import Unit, hold_inputs, ingest, read_unit
from slm2_minimal.text.conversations import said
from slm2_minimal.text.corpus import stream_corpus
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import Tokenizer, load_tokenizer

STAGES = ("text", "units", "keys", "removed", "counts", "held_out", "tokenised")
RECORDS = r"(benchmarks\.(index|inputs)|duplicates\.json|tasks\.json)(\.sha256)?(\.\d+\.part)?"
STARTS = "/starts"  # ends the names of the arrays that say where held-out documents start


@dataclass(frozen=True)
class Job:
    """What every process needs to know."""

    data: DataConfig
    config: PrepareConfig

    @property
    def folder(self) -> Path:
        """Where the shards go."""
        assert self.data.prepared is not None
        return Path(self.data.prepared)

    @property
    def work(self) -> Path:
        """What the stages leave to the ones after them; removed in the end."""
        return self.folder / "work"

    @property
    def text(self) -> Path:
        """Where the units are."""
        return self.work / "text"

    @property
    def benchmarks(self) -> dict[str, BenchmarkConfig]:
        """The evaluation sets, a path alone as a table too."""
        return {
            name: BenchmarkConfig(path=given) if isinstance(given, str) else given
            for name, given in self.config.benchmarks.items()
        }

    def path(self, stage: str, unit: Unit) -> Path:
        """What a stage leaves of a unit, in whatever format."""
        return self.work / stage / unit.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the shards."""
        return cached_tokenizer(self.data.tokenizer)

    def words(self, document: Document) -> str:
        """What is compared of a document: its text, or all that is said in it."""
        return said(document.text) if self.data.is_chat else document.text

    @functools.cached_property
    def lsh(self) -> LSH | None:
        """Bands and rows for the configured similarity, where near duplicates go."""
        if self.config.duplicates != "near":
            return None
        return LSH.for_similarity(
            self.config.similarity, self.config.permutations, self.config.shingle_words
        )


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit's documents."""

    unique: int  # those that are no duplicates
    documents: int  # of them, those in the shard
    held_out: int  # and those held out
    shard: Shard
    contamination: Contamination
    conversations: dict[str, int] = field(default_factory=dict)  # the counts of that class


def remove_work(job: Job) -> None:
    """Remove what the stages left to one another, by the names that they give."""
    for path in job.work.glob("*"):
        if path.name in STAGES:
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(RECORDS, path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's own is in it
        job.work.rmdir()


def ingest_source(job: Job, name: str) -> list[Unit]:
    """All units of one source."""
    return ingest(job.text, name, job.data.sources[name], job.config)


def key_unit(job: Job, unit: Unit) -> None:
    """Write the keys of a unit's documents. Translations share an id on purpose: it is
    repeated where its source has it twice in one language.
    """
    path = job.path("keys", unit)
    if not handover.is_sealed(path):
        documents = (
            (f"{unit.source} {document.language} {document.id}", job.words(document))
            for document in read_unit(job.text, unit)
        )
        with handover.sealing(path):
            write_keys(path, documents, job.lsh)


def benchmark_index(job: Job) -> BenchmarkIndex | None:
    """The index of the evaluation sets, if any, built and stored at the first call."""
    if not job.config.benchmarks:
        return None
    path = job.work / "benchmarks.index"
    inputs = [benchmark.path for benchmark in job.benchmarks.values()]
    hold_inputs(path.with_suffix(".inputs"), inputs, begun=path.exists())
    if not path.exists():
        texts = {
            name: map(attrgetter("text"), stream_corpus(given.path, text_field=given.text_field))
            for name, given in job.benchmarks.items()
        }
        BenchmarkIndex.build(texts, job.config.ngram_words).save(path)
    return BenchmarkIndex.load(path)


@functools.lru_cache(maxsize=1)
def cached_tokenizer(name: str) -> Tokenizer:
    """Built once in a process, and there already in those that are forked from it."""
    return load_tokenizer(name)


def tokenise_unit(job: Job, unit: Unit) -> UnitResult:
    """Take duplicates and evaluation text out of a unit; write its shard, held-out
    documents, counts of ids by language, and last what was done.

    Memory at the peak is about 3 bytes per byte of text (measured: Arcade100k on the
    embedded corpus).
    """
    path = job.path("tokenised", unit)
    if handover.is_sealed(path):
        return handover.read_record(path, UnitResult)
    index = benchmark_index(job)
    percent = job.data.validation_percent
    conversations = Conversations.of(job.data, job.tokenizer)
    split = Split(job.tokenizer, percent, conversations)
    contamination = Contamination()
    counts = Counter(unique=0, documents=0, held_out=0)

    # Batch by batch; a document that is cut becomes several texts
    trained = [split.add([])]
    for documents in batches(_unique(job, unit), attrgetter("text")):
        kept = texts = documents
        if index:
            cleaned, met = clean(list(map(job.words, documents)), index, job.config.contaminated)
            contamination.merge(met)
            pairs = list(zip(documents, cleaned, strict=True))
            kept = texts = [document for document, pieces in pairs if pieces]
            if conversations is None:
                texts = [replace(one, text=text) for one, pieces in pairs for text in pieces]
        trained.append(split.add(texts))
        held_out = sum(is_validation(document.id, percent) for document in kept)
        counts.update(unique=len(documents), documents=len(kept) - held_out, held_out=held_out)

    to_train = TokenStream.joined(trained)
    if conversations is not None:  # of which the encoder may leave some out
        counts["documents"] = len(to_train.starts)
        counts["held_out"] = sum(len(texts.starts) for texts in split.held_out().values())
        to_train = conversations.lay_out(to_train)

    # What publishing joins, and the shard
    arrays: dict[str, np.ndarray] = {}
    for language, stream in split.held_out().items():
        arrays |= {language: stream.tokens, language + STARTS: stream.starts}
    with handover.sealing(job.path("held_out", unit)) as file:
        write_arrays(file, arrays)
    with handover.sealing(job.path("counts", unit)) as file:
        write_arrays(file, split.token_counts)
    shard = write_shard(job.folder, unit.name, to_train)
    told = dict(conversations.counts) if conversations else {}
    result = UnitResult(**counts, shard=shard, contamination=contamination, conversations=told)
    handover.write_record(path, result)
    return result


def _unique(job: Job, unit: Unit) -> Iterator[Document]:
    """The documents that are no duplicates."""
    removed = np.zeros(unit.documents, dtype=bool)
    if job.config.duplicates != "keep":
        removed = np.load(handover.sealed(job.path("removed", unit)), allow_pickle=False)
    rows = zip(read_unit(job.text, unit), removed, strict=True)
    return (document for document, is_removed in rows if not is_removed)
