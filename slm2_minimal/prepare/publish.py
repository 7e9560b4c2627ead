"""The last stage: what the units left becomes a folder with a report and a manifest."""

import logging
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from slm2_minimal.config import DataError
from slm2_minimal.data import conversations, shards
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.reading import ReadingSettings
from slm2_minimal.files import sha256, write_arrays, write_json
from slm2_minimal.prepare.decontaminate import BenchmarkIndex, Contamination
from slm2_minimal.prepare.duplicates import DuplicatesReport
from slm2_minimal.prepare.handover import read_checked, sealed
from slm2_minimal.prepare.units import FILTERED, Unit
from slm2_minimal.prepare.work import STARTS, Job, UnitResult, benchmark_index, remove_work

REPORT = "report.json"
log = logging.getLogger(__name__)

UnitResults = list[tuple[Unit, UnitResult]]


@dataclass(frozen=True)
class SourceReport:
    """What became of one source's documents, in numbers of documents but the last."""

    read: int
    skipped: dict[str, int]  # by reason
    duplicates: int
    contaminated: dict[str, int]  # dropped, and cut
    documents: int
    held_out: int
    tokens: int
    conversations: dict[str, int] = field(default_factory=dict)  # how they became tokens

    @classmethod
    def of(cls, results: UnitResults) -> Self:
        """The report of a source's units."""
        contamination = _contamination_of(results)
        last = results[-1][0]
        unusable = [count for reason, count in last.skipped.items() if reason not in FILTERED]
        unique = sum(result.unique for _, result in results)
        told = Counter[str]()
        for _, result in results:
            told.update(result.conversations)
        return cls(
            read=last.read + sum(unusable),
            skipped=last.skipped,
            duplicates=sum(unit.documents for unit, _ in results) - unique,
            contaminated={"dropped": contamination.dropped, "cut": contamination.cut},
            documents=sum(result.documents for _, result in results),
            held_out=sum(result.held_out for _, result in results),
            tokens=sum(result.shard.tokens for _, result in results),
            conversations=dict(told),
        )


@dataclass(frozen=True)
class BenchmarkReport:
    """One evaluation set, and what of it was met."""

    texts: int
    too_short: int
    ngrams: int
    hit_ngrams: int
    hit_documents: int
    examples: list[dict[str, Any]]  # document (its number), words


@dataclass(frozen=True)
class ContaminationReport:
    """What of the evaluation sets was met in all documents."""

    n: int
    documents: int
    hit: int
    dropped: int
    cut: int
    characters: int
    removed_characters: int
    benchmarks: dict[str, BenchmarkReport]

    @classmethod
    def of(cls, total: Contamination, index: BenchmarkIndex) -> Self:
        """With all benchmarks of the index, those without hits among them."""
        positions = np.asarray(sorted(total.ngrams), dtype=np.int64)
        benchmarks = {}
        for b, benchmark in enumerate(index.benchmarks):
            name = benchmark.name
            members = index.of(b)
            shown = total.examples.get(name, [])
            benchmarks[name] = BenchmarkReport(
                texts=benchmark.texts,
                too_short=benchmark.too_short,
                ngrams=int(members.sum()),
                hit_ngrams=int(members[positions].sum()),
                hit_documents=total.hit_documents[name],
                examples=[{"document": document, "words": words} for document, words in shown],
            )
        return cls(
            index.n, total.documents, total.hit, total.dropped, total.cut,
            total.characters, total.removed_characters, benchmarks,
        )  # fmt: skip


@dataclass(frozen=True)
class PrepareReport:
    """What was read, left out and kept; the same for the same input. `duplicates` is
    None where they may stay, `contamination` where there are no benchmarks.
    """

    sources: dict[str, SourceReport]
    duplicates: DuplicatesReport | None
    contamination: ContaminationReport | None


def publish(
    job: Job, units: list[Unit], results: list[UnitResult], duplicates: DuplicatesReport | None
) -> None:
    """Merge what the units left, write report and manifest, remove the work. Raises
    DataError, and writes nothing, where no text is left to train on.
    """
    pairs = list(zip(units, results, strict=True))
    by_source = {
        name: [(unit, result) for unit, result in pairs if unit.source == name]
        for name in job.data.sources
    }

    # What was read and what is left
    index = benchmark_index(job)
    contamination = ContaminationReport.of(_contamination_of(pairs), index) if index else None
    rows = {name: SourceReport.of(own) for name, own in by_source.items()}
    report = PrepareReport(rows, duplicates, contamination)
    if not any(row.tokens for row in report.sources.values()):
        counts = "; ".join(f"{name}: {row}" for name, row in report.sources.items())
        raise DataError(
            f"data.sources: no text is left to train on ({counts}); leave less out, remove"
            f" {str(job.folder)!r} and prepare again"
        )

    # What training reads
    _write_counts(job, units)
    tokenizer = job.tokenizer
    manifest = shards.Manifest(
        tokenizer=shards.TokenizerName(tokenizer.name, tokenizer.fingerprint, tokenizer.vocab_size),
        read=ReadingSettings.of(job.data),
        sources={name: [result.shard for _, result in own] for name, own in by_source.items()},
        held_out=_write_held_out(job, units),
        token_counts=sha256(job.folder / shards.COUNTS),
    )
    write_json(job.folder / REPORT, asdict(report))
    write_json(job.folder / shards.MANIFEST, asdict(manifest))
    remove_work(job)


def is_prepared(job: Job) -> bool:
    """Whether there is nothing left to do; the log says so.

    Raises DataError for a manifest that cannot be read.
    """
    if not (job.folder / shards.MANIFEST).exists():
        return False
    shards.read_manifest(job.folder)
    remove_work(job)  # left by a stop just after the manifest
    log.info(f"{job.folder} is prepared already; remove it to prepare it again")
    return True


def read_report(job: Job) -> PrepareReport:
    """The report of a folder that is prepared already."""
    return read_checked(job.folder / REPORT, PrepareReport, "copy it again, or prepare again")


def _contamination_of(results: UnitResults) -> Contamination:
    total = Contamination()
    for _, result in results:
        total.merge(result.contamination)
    return total


def _write_counts(job: Job, units: list[Unit]) -> None:
    """How often each id occurs in each language, over all units."""
    total: dict[str, np.ndarray] = {}
    for unit in units:
        for language, counts in load_file(sealed(job.path("counts", unit))).items():
            total[language] = total.get(language, 0) + counts
    write_arrays(job.folder / shards.COUNTS, dict(sorted(total.items())))


def _write_held_out(job: Job, units: list[Unit]) -> dict[str, shards.Shard]:
    """A shard of held-out documents for each language, which may have any name."""
    paths: dict[str, list[Path]] = defaultdict(list)  # the files that have some of a language
    for unit in units:
        path = sealed(job.path("held_out", unit))
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                if name.endswith(STARTS):
                    paths[name.removesuffix(STARTS)].append(path)

    written = {}
    eos = job.tokenizer.eos_token_id
    for number, language in enumerate(sorted(paths)):
        streams = []
        for path in paths[language]:
            with safe_open(path, "numpy") as file:
                tokens, starts = (file.get_tensor(language + end) for end in ("", STARTS))
            streams.append(TokenStream(tokens, starts, eos))
        stream = TokenStream.joined(streams)
        if job.data.is_chat:
            stream = stream.laid_out(job.data.seq_len)
        written[language] = shards.write_shard(job.folder, f"held_out.{number:03d}", stream)
    return written


def summary(report: PrepareReport) -> list[str]:
    """The report as lines for a terminal."""
    columns = ("read", "left out", "duplicates", "contaminated", "held out", "documents", "tokens")
    lines = [f"{'source':<16}" + "".join(f"{column:>14}" for column in columns)]

    # A row for each source
    for name, row in report.sources.items():
        left_out, contaminated = (sum(n.values()) for n in (row.skipped, row.contaminated))
        numbers = [row.read, left_out, row.duplicates, contaminated]
        numbers += [row.held_out, row.documents, row.tokens]
        lines.append(f"{name:<16}" + "".join(f"{number:>14,}" for number in numbers))

    # What to know about some of them
    for name, row in report.sources.items():
        reasons = [f"{count:,} {reason}" for reason, count in sorted(row.skipped.items())]
        if reasons:
            lines.append(f"left out of {name}: " + ", ".join(reasons))
        if row.conversations:
            lines.append(f"conversations of {name}: {conversations.summary(row.conversations)}")
        if not row.tokens:
            lines.append(f"nothing is left of {name}; leave it out of data.sources to train")
    if report.duplicates and report.duplicates.repeated_ids:
        lines.append(
            f"{report.duplicates.repeated_ids:,} documents have an id that an earlier one has;"
            " they stay, but should not"
        )

    # What was met of the evaluation sets
    benchmarks = report.contamination.benchmarks if report.contamination else {}
    for name, benchmark in benchmarks.items():
        lines.append(
            f"benchmark {name}: {benchmark.hit_documents:,} documents share"
            f" {benchmark.hit_ngrams:,} of its {benchmark.ngrams:,} n-grams"
        )
    return lines
