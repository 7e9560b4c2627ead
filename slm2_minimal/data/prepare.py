"""`slm2 prepare`: from raw text to shards, on one machine.

Five stages, each of which leaves complete files behind: read and filter (`units`), keys of every unit, duplicates over all of them
(`dedup`), then evaluation text out (`decontaminate`) and tokens in (`shards`), and the manifest last. A unit's files depend on the
configuration and on the text alone. So a run that was killed goes on where it was, and ends with the bytes of one that was not.
"""

import fcntl
import gc
import json
import os
import re
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from slm2_minimal.config import ConfigError, DataError, RunConfig
from slm2_minimal.data.decontaminate import Report
from slm2_minimal.data.dedup import find_duplicates
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import (
    COUNTS,
    FORMAT,
    MANIFEST,
    how_sources_are_read,
    sha256,
    write_array,
    write_arrays,
    write_json,
    write_shard,
)
from slm2_minimal.data.stages import (
    STARTS,
    WORK,
    Job,
    benchmark_index,
    cached_tokenizer,
    contamination_of,
    ingest_source,
    key_unit,
    tokenise_unit,
)
from slm2_minimal.data.units import FILTERED, Unit, read_unit
from slm2_minimal.text.corpus import text_files

Result = TypeVar("Result")
Say = Callable[[str], None]
REPORT, SETTINGS = "report.json", "settings.json"
SECONDS_BETWEEN_LINES, SECONDS_TO_WAIT = 2.0, 3


def prepare(run: RunConfig, say: Say = print) -> dict[str, Any]:
    """Write shards, manifest and report into `data.prepared`, going on where an earlier call was stopped; return the report.

    Raises:
        ConfigError, DataError: what cannot be right or cannot be read. RuntimeError: a process was killed. In every case what was
        written stays, and the same call goes on from there.
    """
    job = claim(run)
    if (job.folder / MANIFEST).exists():
        shutil.rmtree(job.folder / WORK, ignore_errors=True)  # what a stop between the last two acts left
        say(f"{job.folder} is prepared already; remove it to prepare it again")
        return json.loads((job.folder / REPORT).read_text(encoding="utf-8"))
    with _alone(job.folder):
        report = _prepare(job, say)
    for line in summary(report):
        say(line)
    return report


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder against other calls of `prepare`, wait a little for processes of a killed one, and sweep up behind it."""
    with (folder / SETTINGS).open() as file:
        for attempt in range(SECONDS_TO_WAIT + 1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == SECONDS_TO_WAIT:
                    raise DataError(
                        f"data.prepared = {str(folder)!r}: another slm2 prepare is at work there; let it end, or name another folder"
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
            say(f"benchmarks | {len(index.hashes):,} {index.n}-grams; {short:,} texts are too short to look for")
        done = in_parallel(job, "tokenise", tokenise_unit, units, say)
        return publish(job, units, done, duplicates)
    except BrokenPipeError:  # from `say`: nobody reads the lines any more
        raise
    except OSError as error:
        raise DataError(
            f"data.prepared = {str(job.folder)!r}: {error.strerror or error}; mend that (free disk space, for example) and run the same "
            "again: what is complete stays"
        ) from None
    except BrokenProcessPool:
        raise RuntimeError("a worker process died, perhaps out of memory; run the same again, with fewer prepare.workers") from None


def claim(run: RunConfig) -> Job:
    """Check what can be checked before any work, and take the folder: it holds one configuration's work and no other's.

    Raises:
        ConfigError: no folder, no sources, or a source's name that cannot be a file's. DataError: the folder holds other work.
    """
    data = run.data
    if data.prepared is None:
        raise ConfigError("data.prepared = None: name the folder to write, for example --data.prepared prepared/mine")
    if not data.sources:
        raise ConfigError("data.sources = {}: nothing to read; name sources, for example --data.sources.web.path FOLDER")
    for name in data.sources:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ConfigError(f"data.sources.{name}: becomes the name of files; use letters, digits and . + - _ only")
    job = Job(data, run.prepare)
    inputs = {name: _inputs(job, source.path) for name, source in data.sources.items()}
    inputs |= {f"benchmark {name}": _inputs(job, path) for name, path in run.prepare.benchmarks.items()}
    settings = {
        "read": how_sources_are_read(data),
        "inputs": inputs,
        "prepare": {key: value for key, value in asdict(run.prepare).items() if key != "workers"},
        "tokenizer": cached_tokenizer(data.tokenizer).fingerprint,
    }
    path = job.folder / SETTINGS
    job.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(file.suffix != ".part" for file in job.folder.iterdir()):
            raise DataError(f"data.prepared = {data.prepared!r}: holds files that slm2 prepare did not write; name an empty or new folder")
        write_json(path, settings)
    before = json.loads(path.read_text(encoding="utf-8"))
    missing = {name for name, files in before["inputs"].items() if files is None and inputs.get(name)}
    if missing:  # no file stood there when the folder was begun, so nothing of it can have been read
        before["inputs"] |= {name: inputs[name] for name in missing}
        write_json(path, before)
    for key, value in json.loads(json.dumps(settings)).items():
        if value != before[key]:
            raise DataError(
                f"data.prepared = {data.prepared!r}: was begun with other {key!r} ({_difference(before[key], value)}); "
                "use those, or name another folder"
            )
    return job


def _inputs(job: Job, source: str | None) -> list[list[Any]] | None:
    """Name and size of every local file, so that a change between two calls is noticed; nothing for the corpus and the Hub."""
    path = Path(source or "").expanduser()
    if source is None or not path.exists():
        return None
    if job.folder.resolve().is_relative_to(path.resolve()):
        raise ConfigError(
            f"data.prepared = {str(job.folder)!r}: lies inside {source}, which would then be read with it; name another folder"
        )
    return [[str(file), file.stat().st_size] for file in text_files(path)]


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            if before.get(key) != now.get(key):
                return f"{key}: {_difference(before.get(key), now.get(key))}"
    return f"{before!r}, now {now!r}"[:200]


def in_parallel(job: Job, stage: str, work: Callable[[Job, Any], Result], items: Sequence[str | Unit], say: Say) -> list[Result]:
    """`work(job, item)` for all items, in processes, with a line of progress now and then; the results in the items' order.

    Raises what the first failing call raised; calls that are under way are ended, since what they leave is whole or absent.
    """
    workers = min(job.config.workers or os.cpu_count() or 1, len(items))
    size, started, shown = sum(getattr(item, "size", 0) for item in items), time.perf_counter(), time.perf_counter()
    with ProcessPoolExecutor(workers, initializer=_begin_worker, initargs=(os.getpid(),)) as pool:
        futures = {pool.submit(work, job, item): item for item in items}
        finished = 0
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                finished += getattr(futures[future], "size", 0)
                now = time.perf_counter()
                if now - shown > SECONDS_BETWEEN_LINES or number == len(items):
                    say(_progress(stage, number, len(items), finished, size, now - started))
                    shown = now
        except BaseException:
            for process in list(pool._processes.values()):  # from Python 3.14 on, pool.terminate_workers()
                process.terminate()
            raise
    return [future.result() for future in futures]


def _begin_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it, also where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # the modules that were forked with it stay: looking through them for garbage costs every worker a tenth of a second

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _progress(stage: str, number: int, items: int, finished: int, size: int, seconds: float) -> str:
    line = f"{stage:<8} | {number} of {items}"
    if size:
        left = seconds * (size - finished) / max(finished, 1)
        line += f" | {finished / 1e6:,.1f} MB | {finished / 1e6 / max(seconds, 1e-9):,.1f} MB/s | {left // 60:.0f}:{left % 60:02.0f} left"
    return line


def _mark_duplicates(job: Job, units: list[Unit], say: Say) -> dict[str, Any] | None:
    """Keys of all units, then one bool array per unit that says what goes; the report, None where duplicates may stay."""
    if job.config.duplicates == "keep":
        return None
    path = job.work() / "duplicates.json"
    if not path.exists():
        in_parallel(job, "keys", key_unit, units, say)
        started = time.perf_counter()
        files = [job.work("keys") / f"{unit.name}.npy" for unit in units]
        found = find_duplicates(files, job.lsh, job.config.keep, sources=[unit.source for unit in units])
        for unit, removed in zip(units, found.removed, strict=True):
            write_array(job.work("removed") / f"{unit.name}.npy", removed)
        write_json(path, asdict(found.report) | {"examples": [_named(job, units, cluster) for cluster in found.report.examples]})
        say(f"duplicates | {found.report.documents:,} documents compared in {time.perf_counter() - started:.1f} s")
    return json.loads(path.read_text(encoding="utf-8"))


def _named(job: Job, units: list[Unit], cluster: list[tuple[int, int]]) -> list[dict[str, str]]:
    """A cluster of the report as ids and first words."""
    return [
        {"source": units[unit].source, "id": document.id, "text": document.text[:80]}
        for unit, row in cluster
        for document in islice(read_unit(job.work("text"), units[unit]), row, row + 1)
    ]


def publish(job: Job, units: list[Unit], done: list[dict[str, Any]], duplicates: dict[str, Any] | None) -> dict[str, Any]:
    """Merge what the units left, write report and manifest, and remove the stages' own files; return the report."""
    tokenizer = cached_tokenizer(job.data.tokenizer)
    counts: dict[str, np.ndarray] = {}
    held_out: dict[str, list[Path]] = defaultdict(list)  # the files that have some of a language
    for unit in units:
        for language, found in load_file(job.work("counts") / f"{unit.name}.safetensors").items():
            counts[language] = counts.get(language, 0) + found
        path = job.work("held_out") / f"{unit.name}.safetensors"
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                if name.endswith(STARTS):
                    held_out[name.removesuffix(STARTS)].append(path)
    write_arrays(job.folder / COUNTS, dict(sorted(counts.items())))
    held = {}
    for number, (language, paths) in enumerate(sorted(held_out.items())):  # numbered: a language may have any name
        stream = TokenStream.joined([_held_out(path, language, tokenizer.eos_token_id) for path in paths])
        held[language] = write_shard(job.folder, f"held_out.{number:03d}", stream)
    manifest = {
        "format": FORMAT,
        "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "read": how_sources_are_read(job.data),
        "sources": {name: [d["shard"] for u, d in zip(units, done, strict=True) if u.source == name] for name in job.data.sources},
        "held_out": {language: asdict(shard) for language, shard in held.items()},
        "token_counts": sha256(job.folder / COUNTS),
    }
    report = _report(job, units, done, duplicates)
    write_json(job.folder / REPORT, report)
    write_json(job.folder / MANIFEST, manifest)
    shutil.rmtree(job.work())
    return report


def _held_out(path: Path, language: str, eos: int) -> TokenStream:
    """One language of a file that may hold many."""
    with safe_open(path, "numpy") as file:
        return TokenStream(file.get_tensor(language), file.get_tensor(language + STARTS), eos)


def _report(job: Job, units: list[Unit], done: list[dict[str, Any]], duplicates: dict[str, Any] | None) -> dict[str, Any]:
    """What was read, left out and kept, per source and in all; without times, so that it is the same for the same input."""
    contamination, sources = Report(), {}
    for name in job.data.sources:
        own = [(unit, result) for unit, result in zip(units, done, strict=True) if unit.source == name]
        found = Report()
        for _, result in own:
            found.merge(contamination_of(result))
        last = own[-1][0]
        sources[name] = {
            "read": last.read + sum(count for reason, count in last.skipped.items() if reason not in FILTERED),
            "skipped": last.skipped,
            "duplicates": sum(unit.documents for unit, _ in own) - sum(result["unique"] for _, result in own),
            "contaminated": {"dropped": found.dropped, "cut": found.cut},
            "documents": sum(result["documents"] for _, result in own),
            "held_out": sum(result["held_out"] for _, result in own),
            "tokens": sum(result["shard"]["tokens"] for _, result in own),
        }
    for result in done:
        contamination.merge(contamination_of(result))
    index = benchmark_index(job)
    return {"sources": sources, "duplicates": duplicates, "contamination": contamination.to_json(index) if index else None}


def summary(report: dict[str, Any]) -> list[str]:
    """The report as lines for a terminal."""
    columns = ("read", "left out", "duplicates", "contaminated", "held out", "documents", "tokens")
    lines = [f"{'source':<16}" + "".join(f"{column:>14}" for column in columns)]
    for name, row in report["sources"].items():
        numbers = (
            row["read"], sum(row["skipped"].values()), row["duplicates"], sum(row["contaminated"].values()),
            row["held_out"], row["documents"], row["tokens"],
        )  # fmt: skip
        lines.append(f"{name:<16}" + "".join(f"{number:>14,}" for number in numbers))
    for name, row in report["sources"].items():
        if row["skipped"]:
            lines.append(f"left out of {name}: " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(row["skipped"].items())))
    if report["duplicates"] and report["duplicates"]["repeated_ids"]:
        lines.append(f"{report['duplicates']['repeated_ids']:,} documents have an id that an earlier one has; they stay, but should not")
    for name, row in ((report["contamination"] or {}).get("benchmarks") or {}).items():
        lines.append(f"benchmark {name}: {row['hit_documents']:,} documents share {row['hit_ngrams']:,} of its {row['ngrams']:,} n-grams")
    return lines
