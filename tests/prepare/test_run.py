"""`slm2 prepare`: every document accounted for, and progress said."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm2_minimal.config import DataConfig, PrepareConfig, RunConfig
from slm2_minimal.data.shards import open_prepared
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.prepare import workers
from slm2_minimal.prepare.minhash import LSH
from slm2_minimal.prepare.run import prepare
from slm2_minimal.prepare.work import Job
from slm2_minimal.prepare.workers import in_parallel
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from tests.prepare.preparing import Make, contents, english, lines, texts


def test_every_document_is_where_it_belongs(config: Make, tiny: SentencePieceTokenizer) -> None:
    run = config()
    report = prepare(run)
    kept = [d.text for d in english(40) if not is_validation(d.id, 10)]
    held_out = [d.text for d in english(40) if is_validation(d.id, 10)]
    assert texts(run.data.prepared or "", "web", tiny) == kept
    assert texts(run.data.prepared or "", "en", tiny) == held_out
    web = report.sources["web"]
    assert (web.read, web.documents, web.held_out, web.skipped) == (
        40,
        len(kept),
        len(held_out),
        {},
    )
    assert web.tokens == sum(len(ids) + 1 for ids in tiny.encode_batch(kept))


def test_prepared_and_on_the_spot_are_the_same_to_training(
    config: Make, tiny: SentencePieceTokenizer
) -> None:
    run = config()
    prepare(run)
    prepared, fresh = (
        open_training_data(run.data, tiny),
        open_training_data(run.data.replace(prepared=None), tiny),
    )
    ours, theirs = prepared.loader.batch(0, 40), fresh.loader.batch(0, 40)
    for name in ("input_ids", "labels", "position_ids", "document_ids"):
        assert (getattr(ours, name) == getattr(theirs, name)).all()
    assert list(prepared.held_out) == list(fresh.held_out)
    for language, stream in fresh.held_out.items():
        assert prepared.held_out[language].tokens.tolist() == stream.tokens.tolist()
        assert prepared.token_counts[language].tolist() == fresh.token_counts[language].tolist()


def test_units_and_workers_change_how_it_is_cut_and_not_what_is_kept(
    config: Make, tmp_path: Path, tiny: SentencePieceTokenizer, monkeypatch: Any
) -> None:
    prepare(config("one", **{"prepare.workers": 1}))
    prepare(config("two"))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    monkeypatch.setattr("slm2_minimal.prepare.units.MEGABYTE", 20_000)  # units of twenty kilobytes
    cut = config("cut", **{"prepare.shard_megabytes": 1})
    prepare(cut)
    assert len(list(Path(cut.data.prepared or "").glob("web-*.tokens.npy"))) > 2
    for name in ("web", "de", "en"):
        assert texts(cut.data.prepared or "", name, tiny) == texts(
            config("one").data.prepared or "", name, tiny
        )


# What is left out


def test_duplicates_and_contamination_go_and_are_counted(
    config: Make, tmp_path: Path, tiny: SentencePieceTokenizer, said: list[str]
) -> None:
    base = [d for d in english(60)[40:] if not is_validation(d.id, 10)]
    copy, edited = base[0].text.replace(" ", "  "), base[1].text.replace(" the ", " some ", 1)
    leaked = base[2].text[:300] + " " + base[3].text[100:400] + " " + base[2].text[300:]
    file = tmp_path / "more.jsonl"
    file.write_bytes(
        lines(
            [{"text": t} for t in (*(d.text for d in base[:2]), base[4].text, copy, edited, leaked)]
        )
    )
    (tmp_path / "quiz.jsonl").write_bytes(
        lines([{"text": base[3].text[100:400]}, {"text": "too short"}])
    )
    sources = {"more": {"path": str(file)}}
    changes = {
        "data.sources": sources,
        "data.validation_percent": 0,
        "prepare.benchmarks": {"quiz": str(tmp_path / "quiz.jsonl")},
    }
    report = prepare(config("drop", **changes))
    row = report.sources["more"]
    assert (row.read, row.duplicates, row.contaminated, row.documents) == (
        6,
        2,
        {"dropped": 1, "cut": 0},
        3,
    )
    assert report.duplicates.exact_removed == report.duplicates.near_removed == 1
    assert [[member["id"] for member in cluster] for cluster in report.duplicates.examples] == [
        ["more-1", "more-4"],
        ["more-2", "more-5"],
    ]
    assert report.contamination.benchmarks["quiz"].hit_documents == 1
    assert texts(tmp_path / "drop", "more", tiny) == [base[0].text, base[1].text, base[4].text]
    assert any(line.startswith("benchmark quiz: 1 documents share") for line in said)
    assert any("1 texts are too short to look for" in line for line in said)
    row = prepare(config("cut", **changes, **{"prepare.contaminated": "cut"})).sources["more"]
    assert row.contaminated == {"dropped": 0, "cut": 1}
    assert row.documents == 4, "documents, however many pieces they are cut into"
    assert not any(base[3].text[150:250] in text for text in texts(tmp_path / "cut", "more", tiny))
    row = prepare(config("exact", **changes, **{"prepare.duplicates": "exact"})).sources["more"]
    assert row.duplicates == 1
    assert (
        prepare(config("keep", **changes, **{"prepare.duplicates": "keep"}))
        .sources["more"]
        .duplicates
        == 0
    )


def test_records_that_cannot_be_used_are_counted(
    config: Make, tmp_path: Path, said: list[str]
) -> None:
    good = json.dumps({"id": "twice", "text": english(1)[0].text}).encode()
    bad = [
        b"{broken",
        b'{"no": "text"}',
        '{"text": "Prei\xdfe in Latin-1"}'.encode("latin-1"),
        b'{"text": "  "}',
        b'{"text": "short"}',
        b"[1]",
    ]
    file = tmp_path / "mixed.jsonl"
    file.write_bytes(b"\n".join([good, *bad, good.replace(b"twice", b"once")]) + b"\n")
    report = prepare(
        config(**{"data.sources": {"mixed": {"path": str(file)}}, "data.validation_percent": 0})
    )
    assert report.sources["mixed"].skipped == {
        "not JSON": 1,
        "no text": 2,
        "not UTF-8": 1,
        "empty": 1,
        "too short": 1,
    }
    assert report.sources["mixed"].read == 8
    assert report.sources["mixed"].documents == 1
    assert "left out of mixed: 1 empty, 2 no text, 1 not JSON, 1 not UTF-8, 1 too short" in said


def test_repeated_ids_are_counted_within_a_language(
    config: Make, tmp_path: Path, said: list[str]
) -> None:
    records = [
        {"id": "a", "language": d.language, "text": d.text}
        for d in (*english(3), *load_corpus(languages=["de"])[:1])
    ]
    (tmp_path / "ids.jsonl").write_bytes(lines(records))
    changes = {
        "data.sources": {"ids": {"path": str(tmp_path / "ids.jsonl")}},
        "data.validation_percent": 0,
    }
    report = prepare(config(**changes))
    assert report.duplicates.repeated_ids == 2
    assert report.sources["ids"].documents == 4
    assert any(line.startswith("2 documents have an id that an earlier one has") for line in said)


def test_parquet_zst_and_another_text_field(
    config: Make, tmp_path: Path, tiny: SentencePieceTokenizer
) -> None:
    documents = english(6)
    folder = tmp_path / "kinds"
    folder.mkdir()
    pq.write_table(pa.table({"content": [d.text for d in documents[:3]]}), folder / "a.parquet")
    with pa.output_stream(folder / "b.jsonl.zst", compression="zstd") as file:
        file.write(lines([{"content": d.text} for d in documents[3:]]))
    sources = {"kinds": {"path": str(folder), "text_field": "content"}}
    prepare(config(**{"data.sources": sources, "data.validation_percent": 0}))
    assert texts(tmp_path / "out", "kinds", tiny) == [d.text for d in documents]


def test_a_language_may_have_any_name_and_no_text(
    config: Make, tmp_path: Path, tiny: SentencePieceTokenizer
) -> None:
    held_out = [f"d{i}" for i in range(200) if is_validation(f"d{i}", 10)]
    records = [
        {"id": i, "language": "PL/SQL", "text": d.text}
        for i, d in zip(held_out, english(3), strict=False)
    ]
    leak = english(9)[8].text
    records += [
        {"id": held_out[5], "language": "gone", "text": leak},
        *({"id": f"x{i}", "text": d.text} for i, d in enumerate(english(8)[3:])),
    ]
    (tmp_path / "any.jsonl").write_bytes(lines(records))
    (tmp_path / "quiz.jsonl").write_bytes(lines([{"text": leak}]))
    changes = {
        "data.sources": {"any": {"path": str(tmp_path / "any.jsonl")}},
        "prepare.benchmarks": {"quiz": str(tmp_path / "quiz.jsonl")},
    }
    run = config(**changes)
    prepare(run)
    assert list(open_prepared(run.data, tiny).held_out) == ["PL/SQL"]
    assert texts(tmp_path / "out", "PL/SQL", tiny) == [d.text for d in english(3)]


def test_the_settings_of_minhash_reach_it() -> None:
    config = PrepareConfig(similarity=0.7, permutations=64, shingle_words=3)
    assert Job(DataConfig(prepared="x"), config).lsh == LSH.for_similarity(
        0.7, permutations=64, shingle=3
    )
    assert Job(DataConfig(prepared="x"), config.replace(duplicates="exact")).lsh is None


def test_the_length_of_a_shared_run_reaches_decontamination(config: Make, tmp_path: Path) -> None:
    ten = "one two three four five six seven eight nine ten"
    (tmp_path / "web" / "c.jsonl").write_bytes(lines([{"text": f"green {ten} black"}]))
    (tmp_path / "quiz.jsonl").write_bytes(lines([{"text": f"red {ten} blue"}]))
    changes = {"prepare.benchmarks": {"quiz": str(tmp_path / "quiz.jsonl")}}
    assert prepare(config("ten", **changes, **{"prepare.ngram_words": 10})).contamination.hit == 1
    assert (
        prepare(config("eleven", **changes, **{"prepare.ngram_words": 11})).contamination.hit == 0
    )


def test_a_file_in_two_sources_is_said_where_duplicates_stay(
    config: Make, tmp_path: Path, said: list[str]
) -> None:
    paths = {"all": {"path": str(tmp_path / "web")}, "b": {"path": str(tmp_path / "web/b.jsonl")}}
    changes = {"data.sources": paths, "prepare.duplicates": "keep"}
    prepare(config(**changes))
    [line] = [line for line in said if line.startswith("data.sources.b: reads ")]
    assert "as all does; with duplicates = 'keep'" in line


def test_a_benchmark_may_have_its_text_in_another_field(config: Make, tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_bytes(lines([{"question": english(3)[2].text[:300]}]))
    quiz = {"path": str(tmp_path / "quiz.jsonl"), "text_field": "question"}
    report = prepare(config(**{"prepare.benchmarks": {"quiz": quiz}}))
    assert report.contamination is not None
    assert report.contamination.hit == 1


# What is said


def test_progress_says_how_far_it_is(config: Make, monkeypatch: Any, said: list[str]) -> None:
    monkeypatch.setattr(workers, "SECONDS_BETWEEN_LINES", 0.0)
    prepare(config())
    assert [line.partition(" | ")[0].strip() for line in said[:7]] == [
        "read",
        "read",
        "keys",
        "keys",
        "duplicates",
        "tokenise",
        "tokenise",
    ]
    assert "1 of 2" in said[2]
    assert "MB/s | 0:00 left" in said[3]


def test_a_long_item_is_not_silent(
    config: Make, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(workers, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(workers, "SECONDS_OF_SILENCE", 0.05)
    in_parallel("read", a_moment, [1], 1, lambda: " | 3.0 MB of text")
    assert said.count("read     | 0 of 1 | 3.0 MB of text") >= 2
    assert said[-1] == "read     | 1 of 1"


def a_moment(item: int) -> None:
    time.sleep(0.5)


def test_the_command_line(config: Make, tmp_path: Path) -> None:
    arguments = [
        "--data.prepared",
        str(tmp_path / "cli"),
        "--data.sources",
        '{de = {languages = ["de"]}}',
    ]
    command = [sys.executable, "-m", "slm2_minimal", "prepare", "tiny", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"after {time.perf_counter() - started:.0f} s"
    assert "tokenise | 1 of 1" in done.stdout
    open_prepared(
        RunConfig.load(
            "tiny",
            {"data.prepared": str(tmp_path / "cli"), "data.sources": {"de": {"languages": ["de"]}}},
        ).data,
        _tiny(),
    )


def _tiny() -> SentencePieceTokenizer:
    from slm2_minimal.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("tiny")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer
