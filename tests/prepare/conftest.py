"""Preparations small enough for tests: on this machine, and on datatrove's
executors.
"""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.config import RunConfig
from slm2_minimal.prepare import units as units_module
from slm2_minimal.prepare.words import words_of
from tests.prepare.clustering import BOOKS, CHANGES, QUIZ, WEB, as_lines
from tests.prepare.preparing import Make, english, lines, listening


@pytest.fixture
def config(tmp_path: Path) -> Make:
    """Two sources: a folder with a gzipped and a plain file, and one domain of the
    embedded corpus; changes are `section.field` values.
    """
    web = tmp_path / "web"
    web.mkdir()
    documents = [{"id": d.id, "language": d.language, "text": d.text} for d in english(40)]
    (web / "a.jsonl.gz").write_bytes(gzip.compress(lines(documents[:25])))
    (web / "b.jsonl").write_bytes(lines(documents[25:]))

    def make(out: str = "out", **changes: Any) -> RunConfig:
        sources = {
            "web": {"path": str(web)},
            "de": {"languages": ["de"], "domains": ["recipes", "letters"]},
        }
        base = {
            "data.sources": sources,
            "data.prepared": str(tmp_path / out),
            "data.seq_len": 64,
            "prepare.workers": 2,
        }
        return RunConfig.load("tiny", base | changes)

    return make


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The lines of the package's log, as they come."""
    lines = list[str]()
    with listening(lines.append):
        yield lines


@pytest.fixture(scope="session")
def table_of_characters() -> None:
    """Made here, so that the processes that are forked need not make it each."""
    words_of([""])


@pytest.fixture
def cluster(table_of_characters: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`cluster(name, **changes)`: a folder of six files, one file, and a part of the
    embedded corpus. Units are of some kilobytes.
    """
    monkeypatch.setattr(units_module, "MEGABYTE", 6_000)
    monkeypatch.setattr(
        os, "fsync", lambda file: None
    )  # thousands of small files; no test here pulls the plug
    monkeypatch.chdir(tmp_path)
    for name, texts in WEB:
        path = tmp_path / "web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written = (
            as_lines([text for text, _ in texts]) if path.suffix != ".txt" else texts[0][0].encode()
        )
        path.write_bytes(gzip.compress(written) if path.suffix == ".gz" else written)
    with (tmp_path / "web" / "g.jsonl").open("ab") as file:
        file.write(b'{broken\n{"no": "text"}\n{"text": "Prei\xdfe"}\n')
    (tmp_path / "books.jsonl").write_bytes(as_lines([text for text, _ in BOOKS]))
    (tmp_path / "quiz.jsonl").write_bytes(as_lines([QUIZ]))

    def make(name: str, **changes: Any) -> RunConfig:
        sources = {
            "web": {"path": "web"},
            "books": {"path": "books.jsonl"},
            "code": {"languages": ["code"]},
        }
        first = {
            "data.prepared": name,
            "data.sources": sources,
            "prepare.benchmarks": {"quiz": "quiz.jsonl"},
            "prepare.workers": 2,
        }
        return RunConfig.load("tiny", first | CHANGES | changes)

    return make
