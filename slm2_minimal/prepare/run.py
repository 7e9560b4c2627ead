"""`slm2 prepare`: from raw text to shards, on one machine.

Five stages, each of which leaves complete files behind: read and filter (`units`), keys
of every unit, duplicates over all of them (`duplicates`), then evaluation text out and
tokens in (`work`), and the manifest (`publish`). A unit's files depend on configuration
and text alone. So a run that was killed goes on, to the bytes of one that was not.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from slm2_minimal.config import ConfigError, DataError, RunConfig
from slm2_minimal.config.run import first_difference
from slm2_minimal.data.conversations import Conversations
from slm2_minimal.data.reading import ReadingSettings
from slm2_minimal.files import locked, write_array, write_json
from slm2_minimal.prepare import handover
from slm2_minimal.prepare.duplicates import DuplicatesReport, find_duplicates
from slm2_minimal.prepare.publish import PrepareReport, is_prepared, publish, read_report, summary
from slm2_minimal.prepare.units import Unit, local_files, read_unit
from slm2_minimal.prepare.work import Job, benchmark_index, ingest_source, key_unit, tokenise_unit
from slm2_minimal.prepare.workers import in_parallel
from slm2_minimal.text.documents import is_hub_id

SETTINGS = "settings.json"
# What `files.whole_file` leaves of a file of ours where its process is killed.
LEFTOVER = re.compile(
    r"((settings|report|manifest)\.json|token_counts\.safetensors"
    r"|(.+-\d{6}|held_out\.\d{3,})\.(tokens|starts)\.npy)\.\d+\.part"
)
SECONDS_TO_WAIT = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What decides the content of a prepared folder."""

    read: ReadingSettings
    inputs: dict[str, list[list[Any]] | None]  # of every local file its name and size
    prepare: dict[str, Any]
    tokenizer: str


def prepare(run: RunConfig) -> PrepareReport:
    """Write shards, manifest and report into `data.prepared`, going on where an earlier
    call was stopped. The log says how far it is, and the report's summary.

    Raises:
        ConfigError, DataError: what cannot be right or cannot be read. RuntimeError: a
        process was killed. In every case what is complete stays.
    """
    return report_of(claim(run), _prepare)


def report_of(job: Job, work: Callable[[Job], object]) -> PrepareReport:
    """The report of the job's folder, after `work(job)` where that is not yet done."""
    if not is_prepared(job):
        with alone(job), unwritable_is_said(job):
            work(job)
        for line in summary(read_report(job)):
            log.info(line)
    return read_report(job)


@contextmanager
def alone(job: Job) -> Iterator[None]:
    """Lock the folder against other calls, and sweep up behind a killed one, whose
    processes may need a moment to end.
    """
    with ExitStack() as stack:
        for _ in range(SECONDS_TO_WAIT + 1):
            with suppress(BlockingIOError):
                stack.enter_context(locked(job.folder / SETTINGS))
                break
            time.sleep(1)
        else:
            raise DataError(
                f"data.prepared = {str(job.folder)!r}: another slm2 prepare is at work there; let"
                " it end, or name another folder"
            )
        for path in job.folder.iterdir():
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
        yield


@contextmanager
def unwritable_is_said(job: Job) -> Iterator[None]:
    """In one line, as DataError, when the disk is full, for example."""
    try:
        yield
    except BrokenPipeError:  # from the log: nobody reads its lines any more
        raise
    except OSError as error:
        raise DataError(
            f"data.prepared = {str(job.folder)!r}: {error.strerror or error}; mend that (free disk"
            " space, for example) and run the same again: what is complete stays"
        ) from None


def _prepare(job: Job) -> None:
    """All stages, each over the units of all sources."""
    index = benchmark_index(job)
    if index:
        short = sum(benchmark.too_short for benchmark in index.benchmarks)
        log.info(
            f"benchmarks | {len(index.hashes):,} {index.n}-grams; {short:,} texts are too short to"
            " look for"
        )

    # read all sources
    workers = job.config.workers
    read = partial(ingest_source, job)
    by_source = in_parallel("read", read, list(job.data.sources), workers, partial(text_read, job))
    units = list(chain.from_iterable(by_source))
    require_documents(job, units)

    # find what is there twice, and tokenise the rest
    if job.config.duplicates != "keep":
        in_parallel("keys", partial(key_unit, job), units, workers)
    duplicates = mark_duplicates(job, units)
    results = in_parallel("tokenise", partial(tokenise_unit, job), units, workers)
    publish(job, units, results, duplicates)


def text_read(job: Job) -> str:
    """How much text stands in units by now, as the end of a line of progress."""
    size = sum(path.stat().st_size for path in job.text.glob("*.txt"))
    return f" | {size / 1e6:,.1f} MB of text"


def require_documents(job: Job, units: list[Unit]) -> None:
    """Raise DataError for a source of which reading and filtering left nothing."""
    for source in job.data.sources:
        of_source = [unit for unit in units if unit.source == source]
        if not any(unit.documents for unit in of_source):
            skipped = of_source[-1].skipped if of_source else {}
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
            raise DataError(
                f"data.sources.{source}: has no document to train on"
                f" ({reasons or 'it is empty'}); check its path, text_field and filters, remove"
                f" {str(job.folder)!r} and prepare again"
            )


def mark_duplicates(job: Job, units: list[Unit]) -> DuplicatesReport | None:
    """Write a bool array for each unit: which of its documents are to be removed.

    Where duplicates may stay, it does nothing.
    """
    if job.config.duplicates == "keep":
        return None
    path = job.work / "duplicates.json"
    marks = [job.path("removed", unit) for unit in units]
    if not all(map(handover.is_sealed, [path, *marks])):
        started = time.perf_counter()
        keys = [handover.sealed(job.path("keys", unit)) for unit in units]
        sources = [unit.source for unit in units]
        found = find_duplicates(keys, job.lsh, job.config.keep, sources=sources)
        for mark, removed in zip(marks, found.removed, strict=True):
            with handover.sealing(mark):
                write_array(mark, removed)
        examples = [[_named(job, units, *place) for place in cluster] for cluster in found.largest]
        handover.write_record(path, replace(found.report, examples=examples))
        seconds = time.perf_counter() - started
        log.info(f"duplicates | {found.report.documents:,} documents compared in {seconds:.1f} s")
    return handover.read_record(path, DuplicatesReport)


def _named(job: Job, units: list[Unit], number: int, row: int) -> dict[str, str]:
    """A document as its source, its id and its first words."""
    document = next(islice(read_unit(job.text, units[number]), row, None))
    return {"source": units[number].source, "id": document.id, "text": document.text[:80]}


def claim(run: RunConfig) -> Job:
    """Check what can be checked before any work, and take the folder.

    Raises:
        ConfigError: no folder, no sources, or a source's name that cannot be a file's.
        DataError: the folder holds other work, or conversations have a format without
        ids.
    """
    data = run.data
    if data.prepared is None:
        raise ConfigError(
            "data.prepared = None: name the folder to write, for example --data.prepared"
            " prepared/mine"
        )

    if not data.sources:
        raise ConfigError(
            "data.sources = {}: nothing to read; name sources, for example --data.sources.web.path"
            " FOLDER"
        )
    for name in data.sources:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ConfigError(
                f"data.sources.{name}: becomes the name of files; use letters, digits and . + - _"
                " only"
            )

    # The folder is new, or was begun with the same settings
    job = Job(data, run.prepare)
    Conversations.of(data, job.tokenizer)
    settings = _settings(job)
    path = job.folder / SETTINGS
    with unwritable_is_said(job):
        job.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if not all(LEFTOVER.fullmatch(file.name) for file in job.folder.iterdir()):
                raise DataError(
                    f"data.prepared = {data.prepared!r}: holds files that slm2 prepare did not"
                    " write; name an empty or new folder"
                )
            write_json(path, asdict(settings))
        _compare(job, settings)
    return job


def _settings(job: Job) -> Settings:
    inputs = {name: _inputs(job, source.path) for name, source in job.data.sources.items()}
    for name, benchmark in job.benchmarks.items():
        inputs[f"benchmark {name}"] = _inputs(job, benchmark.path)
    config = asdict(job.config)
    del config["workers"]
    tokenizer = job.tokenizer.fingerprint
    if job.config.duplicates == "keep":
        _warn_of_overlaps(job, inputs)
    return Settings(ReadingSettings.of(job.data), inputs, config, tokenizer)


def _warn_of_overlaps(job: Job, inputs: Mapping[str, list[list[Any]] | None]) -> None:
    """Where no duplicates go, one text may be held out of one source and trained on in
    another: an id that is made of the place below a source's path differs with it.
    """
    readers: dict[Path, str] = {}
    for name in job.data.sources:
        for file, _ in inputs[name] or []:
            other = readers.setdefault(Path(file).resolve(), name)
            if job.data.sources[other].path != job.data.sources[name].path:
                log.warning(
                    f"data.sources.{name}: reads {file}, as {other} does; with duplicates ="
                    " 'keep', texts without an id may be held out and trained on"
                )
                break


def _compare(job: Job, settings: Settings) -> None:
    """Refuse other settings than the folder was begun with."""
    remedy = f"remove {str(job.folder)!r} and prepare again"
    before = handover.read_checked(job.folder / SETTINGS, Settings, remedy)
    field, theirs, ours = first_difference(asdict(before), asdict(settings))
    if field:
        key, _, rest = field.partition(".")
        difference = f"{rest or key}: " + f"{theirs!r}, now {ours!r}"[:200]
        raise DataError(
            f"data.prepared = {job.data.prepared!r}: was begun with other {key!r} ({difference});"
            " use those, or name another folder"
        )


def _inputs(job: Job, source: str | None) -> list[list[Any]] | None:
    """Name and size of every local file, so that a change is noticed."""
    if source is None:
        return None
    path = Path(source)
    if not path.exists():
        if is_hub_id(source):
            return None
        raise DataError(
            f"path = {source!r}: no such file or folder; give one, or a Hub id owner/name"
        )
    if job.folder.resolve().is_relative_to(path.resolve()):
        raise ConfigError(
            f"data.prepared = {str(job.folder)!r}: lies inside {source}, which would then be read"
            " with it; name another folder"
        )
    return [[name, about.st_size] for name, about in local_files(source)]
