"""What `slm2 prepare` does to one source or one unit: read it, make its keys, tokenise
what stays of it.

Each function writes files that are whole or absent, into the job's folder, and does
nothing where they are there already. They know of no other unit, so any number of
processes can share the work, on one machine (`run`) or on many (`cluster`).
"""

import contextlib
import functools
import itertools
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped

from slm2_minimal.config import BenchmarkConfig, DataConfig, PrepareConfig
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import Shard, write_shard
from slm2_minimal.files import write_arrays
from slm2_minimal.prepare import handover
from slm2_minimal.prepare.decontaminate import BenchmarkIndex, Contamination, clean
from slm2_minimal.prepare.duplicates import write_keys
from slm2_minimal.prepare.minhash import LSH, batches
from slm2_minimal.prepare.units import Unit, hold_inputs, ingest, read_unit
from slm2_minimal.text.corpus import stream_corpus
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import Tokenizer, load_tokenizer

STAGES = ("text", "units", "keys", "removed", "counts", "held_out", "tokenised")
RECORDS = r"(benchmarks\.(index|inputs)|duplicates\.json|tasks\.json)(\.sha256)?(\.\d+\.part)?"
STARTS = "/starts"  # ends the names of the arrays that say where held-out documents start
COUNTED_AT_ONCE = 1 << 19  # ids


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
    """Write the keys of a unit's documents.

    Translations share an id on purpose: an id is repeated where its source has it twice
    in one language.
    """
    path = job.path("keys", unit)
    if not handover.is_sealed(path):
        documents = (
            (f"{unit.source} {document.language} {document.id}", document.text)
            for document in read_unit(job.text, unit)
        )
        write_keys(handover.in_folder(path), documents, job.lsh)
        handover.seal(path)


def benchmark_index(job: Job) -> BenchmarkIndex | None:
    """The index of the evaluation sets, if any, built and stored at the first call."""
    if not job.config.benchmarks:
        return None
    path = job.work / "benchmarks.index"
    inputs = [benchmark.path for benchmark in job.benchmarks.values()]
    hold_inputs(path.with_suffix(".inputs"), inputs, begun=path.exists())
    if not path.exists():
        texts = {name: _texts(benchmark) for name, benchmark in job.benchmarks.items()}
        BenchmarkIndex.build(texts, job.config.ngram_words).save(path)
    return BenchmarkIndex.load(path)


def _texts(benchmark: BenchmarkConfig) -> Iterator[str]:
    for document in stream_corpus(benchmark.path, text_field=benchmark.text_field):
        yield document.text


@functools.lru_cache(maxsize=1)
def cached_tokenizer(name: str) -> Tokenizer:
    """Built once in a process, and there already in those that are forked from it."""
    return load_tokenizer(name)


def tokenise_unit(job: Job, unit: Unit) -> UnitResult:
    """Take duplicates and evaluation text out of a unit, and write its shard.

    Beside it are the held-out documents, and the counts of ids per language. The last
    file says what was done. Memory at the peak is about 3 bytes per byte of the unit's
    text (measured: Arcade100k on the embedded corpus).
    """
    path = job.path("tokenised", unit)
    if handover.is_sealed(path):
        return handover.read_record(path, UnitResult)
    index = benchmark_index(job)
    contamination = Contamination()
    counts = Counter(unique=0, documents=0, held_out=0)
    batched = [_tokenise(job, [], index)]
    for documents in batches(_unique(job, unit), attrgetter("text")):
        batched.append(_tokenise(job, documents, index))
        contamination.merge(batched[-1].contamination)
        counts.update(batched[-1].counts)

    texts = TokenStream.joined([batch.texts for batch in batched])
    languages = np.concatenate([batch.languages for batch in batched])
    held_out = np.concatenate([batch.held_out for batch in batched])
    del batched
    shard = _write_texts(job, unit, texts, languages, held_out)
    result = UnitResult(**counts, shard=shard, contamination=contamination)
    handover.write_record(path, result)
    return result


def _unique(job: Job, unit: Unit) -> Iterator[Document]:
    """The documents that are no duplicates."""
    removed = np.zeros(unit.documents, dtype=bool)
    if job.config.duplicates != "keep":
        removed = np.load(handover.sealed(job.path("removed", unit)), allow_pickle=False)
    for document, is_removed in zip(read_unit(job.text, unit), removed, strict=True):
        if not is_removed:
            yield document


@dataclass(frozen=True)
class _Batch:
    """What stays of some documents, as ids; one that was cut is several texts."""

    texts: TokenStream
    languages: Shaped[np.ndarray, " texts"]
    held_out: Bool[np.ndarray, " texts"]
    counts: dict[str, int]  # of documents, by the fields of UnitResult
    contamination: Contamination


def _tokenise(job: Job, documents: Sequence[Document], index: BenchmarkIndex | None) -> _Batch:
    """Clean and tokenise as many documents as are held at a time."""
    cleaned = [[document.text] for document in documents]
    contamination = Contamination()
    if index:
        texts = [document.text for document in documents]
        cleaned, contamination = clean(texts, index, job.config.contaminated)

    tokenizer = cached_tokenizer(job.data.tokenizer)
    pieces = list(itertools.chain.from_iterable(cleaned))
    stream = TokenStream.from_lengths(*tokenizer.encode_documents(pieces), tokenizer.eos_token_id)

    # Of each document, then of each of its pieces.
    percent = job.data.validation_percent
    held_out = np.array([is_validation(document.id, percent) for document in documents], bool)
    languages = np.array([document.language for document in documents], object)
    pieces_each = np.array([len(texts) for texts in cleaned], int)
    counts = {
        "unique": len(documents),
        "documents": int((~held_out & (pieces_each > 0)).sum()),
        "held_out": int((held_out & (pieces_each > 0)).sum()),
    }
    languages, held_out = (np.repeat(array, pieces_each) for array in (languages, held_out))
    return _Batch(stream, languages, held_out, counts, contamination)


def _write_texts(
    job: Job,
    unit: Unit,
    texts: TokenStream,
    languages: Shaped[np.ndarray, " texts"],
    held_out: Bool[np.ndarray, " texts"],
) -> Shard:
    """Write the held-out texts, the shard of the others, and the counts of its ids."""
    full = np.diff(texts.starts, append=len(texts.tokens)) > 1  # an end of text teaches nothing
    trained = texts.only(full & ~held_out)
    shard = write_shard(job.folder, unit.name, trained)

    vocab_size = cached_tokenizer(job.data.tokenizer).vocab_size
    counts = {
        language: _counts(stream.tokens, vocab_size)
        for language, stream in _by_language(trained, languages[full & ~held_out])
    }
    _leave(job, "counts", unit, counts)

    arrays = {}
    for language, stream in _by_language(texts.only(full & held_out), languages[full & held_out]):
        arrays[language] = stream.tokens
        arrays[language + STARTS] = stream.starts
    _leave(job, "held_out", unit, arrays)
    return shard


def _leave(job: Job, stage: str, unit: Unit, arrays: dict[str, np.ndarray]) -> None:
    path = handover.in_folder(job.path(stage, unit))
    write_arrays(path, arrays)
    handover.seal(path)


def _by_language(
    texts: TokenStream, languages: Shaped[np.ndarray, " texts"]
) -> Iterator[tuple[str, TokenStream]]:
    for language in sorted(set(languages)):
        yield language, texts.only(languages == language)


def _counts(tokens: Int[np.ndarray, " N"], vocab_size: int) -> Int[np.ndarray, " V"]:
    """How often each id occurs. NumPy makes eight bytes of every id to count it."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for begin in range(0, len(tokens), COUNTED_AT_ONCE):
        counts += np.bincount(tokens[begin : begin + COUNTED_AT_ONCE], minlength=vocab_size)
    return counts
