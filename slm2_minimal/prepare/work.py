"""What `slm2 prepare` does to one source or one unit: read it, make its keys, tokenise
what stays of it.

Each function writes files that are whole or absent, into the job's folder, and does
nothing where they are there already. They know of no other unit, so any number of
processes can share the work, on one machine (`prepare`) or on many (`cluster`).
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from slm2_minimal.config import DataConfig, PrepareConfig
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import Shard, write_shard
from slm2_minimal.files import write_arrays, write_json
from slm2_minimal.prepare.decontaminate import BenchmarkIndex, Report, clean
from slm2_minimal.prepare.duplicates import write_keys
from slm2_minimal.prepare.minhash import LSH, batches
from slm2_minimal.prepare.units import Unit, ingest, read_unit
from slm2_minimal.text.corpus import stream_corpus
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import Tokenizer, load_tokenizer

WORK, STARTS = (
    "work",
    "/starts",
)  # the second ends the names of the arrays that say where held-out documents start
TOGETHER = 1 << 19  # ids that are counted at once


@dataclass(frozen=True)
class Job:
    """What every process needs to know."""

    data: DataConfig
    config: PrepareConfig

    @property
    def folder(self) -> Path:
        """Where the shards go."""
        assert self.data.prepared is not None
        return Path(self.data.prepared).expanduser()

    def work(self, name: str = "") -> Path:
        """A folder for what the stages before the last leave to the ones after them; it
        is made, and removed in the end.
        """
        path = self.folder / WORK / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @functools.cached_property
    def lsh(self) -> LSH | None:
        """Bands and rows for the configured similarity; None where only exact
        duplicates go.
        """
        if self.config.duplicates != "near":
            return None
        return LSH.for_similarity(
            self.config.similarity, self.config.permutations, self.config.shingle_words
        )


def ingest_source(job: Job, name: str) -> list[Unit]:
    """All units of one source."""
    return list(ingest(job.work("text"), name, job.data.sources[name], job.config))


def key_unit(job: Job, unit: Unit) -> Unit:
    """Write the keys of a unit's documents."""
    path = job.work("keys") / f"{unit.name}.npy"
    if not path.exists():
        # Translations share an id on purpose: an id is repeated where its source has it
        # twice in one language.
        ids = (
            f"{unit.source} {document.language} {document.id}"
            for document in read_unit(job.work("text"), unit)
        )
        texts = (document.text for document in read_unit(job.work("text"), unit))
        write_keys(path, ids, texts, job.lsh)
    return unit


def benchmark_index(job: Job) -> BenchmarkIndex | None:
    """The index of the evaluation sets, built and stored at the first call; None where
    there are none.
    """
    if not job.config.benchmarks:
        return None
    path = job.work() / "benchmarks.index"
    if not path.exists():
        texts = {
            name: (document.text for document in stream_corpus(source))
            for name, source in job.config.benchmarks.items()
        }
        BenchmarkIndex.build(texts, job.config.ngram_words).save(path)
    return BenchmarkIndex.load(path)


@functools.lru_cache(maxsize=1)
def cached_tokenizer(name: str) -> Tokenizer:
    """Built once in a process, and there already in those that are forked from it."""
    return load_tokenizer(name)


def tokenise_unit(job: Job, unit: Unit) -> dict[str, Any]:
    """What `write_unit` does, for the documents of a unit that are no duplicates."""
    return write_unit(job, unit, _unique(job, unit))


def write_unit(job: Job, unit: Unit, documents: Iterable[Document]) -> dict[str, Any]:
    """Take evaluation text out of a unit's `documents`, and write what stays as its
    shard; beside it the held-out documents, and the counts of ids per language. The
    last file says what was done. Memory at the peak is about 3 bytes per byte of the
    unit's text (measured: Arcade100k on the embedded corpus).
    """
    path = job.work("tokenised") / f"{unit.name}.json"
    if path.exists():
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return done
    tokenizer, index = cached_tokenizer(job.data.tokenizer), benchmark_index(job)
    contamination, numbers = Report(), {"unique": 0, "documents": 0, "held_out": 0}
    languages, held_out = (
        list[str](),
        list[bool](),
    )  # of each text that stays: its document's language, and whether that is held out

    def kept() -> Iterator[str]:
        for document, pieces in _cleaned(job, documents, index, contamination):
            numbers["unique"] += 1
            if pieces:
                held = is_validation(document.id, job.data.validation_percent)
                numbers["held_out" if held else "documents"] += 1
                languages.extend([document.language] * len(pieces))
                held_out.extend([held] * len(pieces))
                yield from pieces

    encoded = [tokenizer.encode_documents([]), *map(tokenizer.encode_documents, batches(kept()))]
    tokens, lengths = (np.concatenate(arrays) for arrays in zip(*encoded, strict=True))
    del encoded
    texts = TokenStream.from_lengths(tokens, lengths, tokenizer.eos_token_id)
    shard = _write_texts(
        job, unit, texts, np.array(languages, dtype=object), np.array(held_out, dtype=bool)
    )
    done = {
        **numbers,
        "shard": asdict(shard),
        "contamination": vars(contamination) | {"ngrams": sorted(contamination.ngrams)},
    }
    write_json(path, done)
    return done


def _unique(job: Job, unit: Unit) -> Iterator[Document]:
    """The documents that are no duplicates."""
    path = job.work("removed") / f"{unit.name}.npy"
    removed = (
        np.load(path, allow_pickle=False)
        if job.config.duplicates != "keep"
        else np.zeros(unit.documents, dtype=bool)
    )
    for document, gone in zip(read_unit(job.work("text"), unit), removed, strict=True):
        if not gone:
            yield document


def _cleaned(
    job: Job, documents: Iterable[Document], index: BenchmarkIndex | None, report: Report
) -> Iterator[tuple[Document, list[str]]]:
    """The documents, each with the pieces that stay of its text."""
    if index is None:
        return ((document, [document.text]) for document in documents)
    ours, theirs = itertools.tee(documents)
    return zip(
        ours,
        clean((document.text for document in theirs), index, job.config.contaminated, report),
        strict=True,
    )


def _write_texts(
    job: Job,
    unit: Unit,
    texts: TokenStream,
    languages: Shaped[np.ndarray, " texts"],
    held_out: Bool[np.ndarray, " texts"],
) -> Shard:
    """The shard of the texts that are not held out, the counts of its ids, and the
    held-out texts.
    """
    full = (
        np.diff(texts.starts, append=len(texts.tokens)) > 1
    )  # an end of text alone teaches nothing
    trained, held_out = full & ~held_out, full & held_out
    stream = texts.only(trained)
    shard = write_shard(job.folder, unit.name, stream)
    vocab_size = cached_tokenizer(job.data.tokenizer).vocab_size
    counts = {
        name: _counts(part.tokens, vocab_size) for name, part in _parts(stream, languages[trained])
    }
    write_arrays(job.work("counts") / f"{unit.name}.safetensors", counts)
    held = dict(_parts(texts.only(held_out), languages[held_out]))
    arrays = {name: part.tokens for name, part in held.items()} | {
        name + STARTS: part.starts for name, part in held.items()
    }
    write_arrays(job.work("held_out") / f"{unit.name}.safetensors", arrays)
    return shard


def _parts(
    texts: TokenStream, languages: Shaped[np.ndarray, " texts"]
) -> Iterator[tuple[str, TokenStream]]:
    """The texts of each language."""
    return ((language, texts.only(languages == language)) for language in sorted(set(languages)))


def _counts(tokens: Int[np.ndarray, " N"], vocab_size: int) -> Int[np.ndarray, " V"]:
    """How often each id occurs."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for begin in range(
        0, len(tokens), TOGETHER
    ):  # not all at once: to count them, NumPy makes eight bytes of every id
        counts += np.bincount(tokens[begin : begin + TOGETHER], minlength=vocab_size)
    return counts


def contamination_of(done: dict[str, Any]) -> Report:
    """The report that `tokenise_unit` left in its file."""
    fields: dict[str, Any] = done["contamination"]
    return Report(
        **fields | {"hit_documents": Counter(fields["hit_documents"]), "ngrams": set(fields["ngrams"])}
        | {"examples": {name: [(at, words) for at, words in shown] for name, shown in fields["examples"].items()}}
    )  # fmt: skip
