"""`slm2 prepare`: from raw text to shards, on one machine.

Five stages, each of which leaves complete files behind: read and filter (`units`), keys
of every unit, duplicates over all of them (`dedup`), then evaluation text out
(`decontaminate`) and tokens in (`shards`), and the manifest last. A unit's files depend
on the configuration and on the text alone. So a run that was killed goes on where it
was, and ends with the bytes of one that was not.
"""

import fcntl
import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from slm2_minimal.config import ConfigError, DataError, RunConfig
from slm2_minimal.data.reading import reading_settings
from slm2_minimal.data.shards import MANIFEST
from slm2_minimal.files import write_array, write_json
from slm2_minimal.prepare.duplicates import find_duplicates
from slm2_minimal.prepare.publish import REPORT, publish, summary
from slm2_minimal.prepare.units import Unit, read_unit
from slm2_minimal.prepare.work import (
    WORK,
    Job,
    benchmark_index,
    cached_tokenizer,
    ingest_source,
    key_unit,
    tokenise_unit,
)
from slm2_minimal.prepare.workers import Say, in_parallel
from slm2_minimal.text.documents import text_files

SETTINGS = "settings.json"
SECONDS_TO_WAIT = 3


def prepare(run: RunConfig, say: Say = print) -> dict[str, Any]:
    """Write shards, manifest and report into `data.prepared`, going on where an earlier
    call was stopped; return the report.

    Raises:
        ConfigError, DataError: what cannot be right or cannot be read. RuntimeError: a
        process was killed. In every case what was written stays, and the same call goes
        on from there.
    """
    job = claim(run)
    if (job.folder / MANIFEST).exists():
        shutil.rmtree(
            job.folder / WORK, ignore_errors=True
        )  # what a stop between the last two acts left
        say(f"{job.folder} is prepared already; remove it to prepare it again")
        return json.loads((job.folder / REPORT).read_text(encoding="utf-8"))
    with _alone(job.folder):
        report = _prepare(job, say)
    for line in summary(report):
        say(line)
    return report


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder against other calls of `prepare`, wait a little for processes of
    a killed one, and sweep up behind it.
    """
    with (folder / SETTINGS).open() as file:
        for attempt in range(SECONDS_TO_WAIT + 1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == SECONDS_TO_WAIT:
                    raise DataError(
                        f"data.prepared = {str(folder)!r}: another slm2 prepare is at work there;"
                        " let it end, or name another folder"
                    ) from None
                time.sleep(1)
        for path in folder.glob("*.part"):
            path.unlink()
        yield


def _prepare(job: Job, say: Say) -> dict[str, Any]:
    try:
        read = in_parallel(job, "read", ingest_source, list(job.data.sources), say)
        units = [unit for units in read for unit in units]
        duplicates = _mark_duplicates(job, units, say)
        index = benchmark_index(job)
        if index:
            short = sum(benchmark.too_short for benchmark in index.benchmarks)
            say(
                f"benchmarks | {len(index.hashes):,} {index.n}-grams; {short:,} texts are too short"
                " to look for"
            )
        done = in_parallel(job, "tokenise", tokenise_unit, units, say)
        return publish(job, units, done, duplicates)
    except BrokenPipeError:  # from `say`: nobody reads the lines any more
        raise
    except OSError as error:
        raise DataError(
            f"data.prepared = {str(job.folder)!r}: {error.strerror or error}; mend that (free disk"
            " space, for example) and run the same again: what is complete stays"
        ) from None
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died, perhaps out of memory; run the same again, with fewer"
            " prepare.workers"
        ) from None


def claim(run: RunConfig) -> Job:
    """Check what can be checked before any work, and take the folder: it holds one
    configuration's work and no other's.

    Raises:
        ConfigError: no folder, no sources, or a source's name that cannot be a file's.
        DataError: the folder holds other work.
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
    job = Job(data, run.prepare)
    inputs = {name: _inputs(job, source.path) for name, source in data.sources.items()}
    inputs |= {
        f"benchmark {name}": _inputs(job, path) for name, path in run.prepare.benchmarks.items()
    }
    settings = {
        "read": reading_settings(data),
        "inputs": inputs,
        "prepare": {key: value for key, value in asdict(run.prepare).items() if key != "workers"},
        "tokenizer": cached_tokenizer(data.tokenizer).fingerprint,
    }
    path = job.folder / SETTINGS
    job.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(file.suffix != ".part" for file in job.folder.iterdir()):
            raise DataError(
                f"data.prepared = {data.prepared!r}: holds files that slm2 prepare did not write;"
                " name an empty or new folder"
            )
        write_json(path, settings)
    before = json.loads(path.read_text(encoding="utf-8"))
    missing = {
        name for name, files in before["inputs"].items() if files is None and inputs.get(name)
    }
    if (
        missing
    ):  # no file stood there when the folder was begun, so nothing of it can have been read
        before["inputs"] |= {name: inputs[name] for name in missing}
        write_json(path, before)
    for key, value in json.loads(json.dumps(settings)).items():
        if value != before[key]:
            raise DataError(
                f"data.prepared = {data.prepared!r}: was begun with other {key!r}"
                f" ({_difference(before[key], value)}); use those, or name another folder"
            )
    return job


def _inputs(job: Job, source: str | None) -> list[list[Any]] | None:
    """Name and size of every local file, so that a change between two calls is noticed;
    nothing for the corpus and the Hub.
    """
    path = Path(source or "").expanduser()
    if source is None or not path.exists():
        return None
    if job.folder.resolve().is_relative_to(path.resolve()):
        raise ConfigError(
            f"data.prepared = {str(job.folder)!r}: lies inside {source}, which would then be read"
            " with it; name another folder"
        )
    return [[str(file), file.stat().st_size] for file in text_files(path)]


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            if before.get(key) != now.get(key):
                return f"{key}: {_difference(before.get(key), now.get(key))}"
    return f"{before!r}, now {now!r}"[:200]


def _mark_duplicates(job: Job, units: list[Unit], say: Say) -> dict[str, Any] | None:
    """Keys of all units, then one bool array per unit that says what goes; the report,
    None where duplicates may stay.
    """
    if job.config.duplicates == "keep":
        return None
    path = job.work() / "duplicates.json"
    if not path.exists():
        in_parallel(job, "keys", key_unit, units, say)
        started = time.perf_counter()
        files = [job.work("keys") / f"{unit.name}.npy" for unit in units]
        found = find_duplicates(
            files, job.lsh, job.config.keep, sources=[unit.source for unit in units]
        )
        for unit, removed in zip(units, found.removed, strict=True):
            write_array(job.work("removed") / f"{unit.name}.npy", removed)
        write_json(
            path,
            asdict(found.report)
            | {"examples": [_named(job, units, cluster) for cluster in found.report.examples]},
        )
        say(
            f"duplicates | {found.report.documents:,} documents compared in"
            f" {time.perf_counter() - started:.1f} s"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _named(job: Job, units: list[Unit], cluster: list[tuple[int, int]]) -> list[dict[str, str]]:
    """A cluster of the report as ids and first words."""
    return [
        {"source": units[unit].source, "id": document.id, "text": document.text[:80]}
        for unit, row in cluster
        for document in islice(read_unit(job.work("text"), units[unit]), row, row + 1)
    ]
