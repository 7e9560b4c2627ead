"""PLACE: say what this is."""

import shutil
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.reading import reading_settings
from slm2_minimal.data.shards import COUNTS, FORMAT, MANIFEST, write_shard
from slm2_minimal.files import sha256, write_arrays, write_json
from slm2_minimal.prepare.decontaminate import Report
from slm2_minimal.prepare.units import FILTERED, Unit
from slm2_minimal.prepare.work import (
    STARTS,
    Job,
    benchmark_index,
    cached_tokenizer,
    contamination_of,
)

REPORT = "report.json"


def publish(
    job: Job, units: list[Unit], done: list[dict[str, Any]], duplicates: dict[str, Any] | None
) -> dict[str, Any]:
    """Merge what the units left, write report and manifest, and remove the stages' own
    files; return the report.
    """
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
    for number, (language, paths) in enumerate(
        sorted(held_out.items())
    ):  # numbered: a language may have any name
        stream = TokenStream.joined(
            [_held_out(path, language, tokenizer.eos_token_id) for path in paths]
        )
        held[language] = write_shard(job.folder, f"held_out.{number:03d}", stream)
    manifest = {
        "format": FORMAT,
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "read": reading_settings(job.data),
        "sources": {
            name: [d["shard"] for u, d in zip(units, done, strict=True) if u.source == name]
            for name in job.data.sources
        },
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


def _report(
    job: Job, units: list[Unit], done: list[dict[str, Any]], duplicates: dict[str, Any] | None
) -> dict[str, Any]:
    """What was read, left out and kept, per source and in all; without times, so that
    it is the same for the same input.
    """
    contamination, sources = Report(), {}
    for name in job.data.sources:
        own = [
            (unit, result) for unit, result in zip(units, done, strict=True) if unit.source == name
        ]
        found = Report()
        for _, result in own:
            found.merge(contamination_of(result))
        last = own[-1][0]
        sources[name] = {
            "read": (
                last.read
                + sum(count for reason, count in last.skipped.items() if reason not in FILTERED)
            ),
            "skipped": last.skipped,
            "duplicates": (
                sum(unit.documents for unit, _ in own) - sum(result["unique"] for _, result in own)
            ),
            "contaminated": {"dropped": found.dropped, "cut": found.cut},
            "documents": sum(result["documents"] for _, result in own),
            "held_out": sum(result["held_out"] for _, result in own),
            "tokens": sum(result["shard"]["tokens"] for _, result in own),
        }
    for result in done:
        contamination.merge(contamination_of(result))
    index = benchmark_index(job)
    return {
        "sources": sources,
        "duplicates": duplicates,
        "contamination": contamination.to_json(index) if index else None,
    }


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
            lines.append(
                f"left out of {name}: "
                + ", ".join(
                    f"{count:,} {reason}" for reason, count in sorted(row["skipped"].items())
                )
            )
    if report["duplicates"] and report["duplicates"]["repeated_ids"]:
        lines.append(
            f"{report['duplicates']['repeated_ids']:,} documents have an id that an earlier one"
            " has; they stay, but should not"
        )
    for name, row in ((report["contamination"] or {}).get("benchmarks") or {}).items():
        lines.append(
            f"benchmark {name}: {row['hit_documents']:,} documents share {row['hit_ngrams']:,} of"
            f" its {row['ngrams']:,} n-grams"
        )
    return lines
