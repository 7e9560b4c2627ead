"""From the [data] table to streams: nothing held out is trained on or scored twice."""

import json
import logging
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slm2_minimal.config import ConfigError, DataConfig, DataError, RunConfig, SourceConfig
from slm2_minimal.data import training_data as module
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import write_shard
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from tests.data.conftest import HELD_OUT, IDS, config, prepared, texts, write


def test_what_goes_where(en: str, de: str, tiny: SentencePieceTokenizer) -> None:
    data = open_training_data(
        config(first=SourceConfig(path=en, weight=3), second=SourceConfig(path=de)), tiny
    )
    assert 4 <= len(HELD_OUT) <= 12
    assert data.loader.names == ["first", "second"]
    assert data.loader.mixture.stages[0].weights == (3, 1)
    assert (data.loader.seq_len, data.loader.seed) == (16, 1234)
    kept = [i for i in IDS if i not in HELD_OUT]
    for language, stream in zip(("en", "de"), data.loader.streams, strict=True):
        assert texts(stream, tiny) == [f"{language} {i}" for i in kept]
        assert (
            data.token_counts[language].tolist()
            == np.bincount(stream.tokens, minlength=tiny.vocab_size).tolist()
        )
        assert texts(data.held_out[language], tiny) == [f"{language} {i}" for i in HELD_OUT]
        assert stream.eos == tiny.eos_token_id
    assert sorted(data.held_out) == sorted(data.token_counts) == ["de", "en"]


def test_overlapping_sources_are_scored_once(
    en: str, de: str, tiny: SentencePieceTokenizer, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    both.mkdir()
    write(both / "a.jsonl", IDS, "en")
    write(both / "b.jsonl", IDS, "de")
    data = open_training_data(
        config(first=SourceConfig(path=en), second=SourceConfig(path=str(both))), tiny
    )
    assert texts(data.held_out["en"], tiny) == [f"en {i}" for i in HELD_OUT]
    assert texts(data.held_out["de"], tiny) == [f"de {i}" for i in HELD_OUT]
    held_out = {f"{language} {i}" for language in ("en", "de") for i in HELD_OUT}
    for stream in data.loader.streams:
        assert not held_out & set(texts(stream, tiny))
    assert len(texts(data.loader.streams[1], tiny)) == 2 * (len(IDS) - len(HELD_OUT))


def test_the_same_id_on_different_texts_is_not_an_overlap(
    en: str, tmp_path: Path, tiny: SentencePieceTokenizer
) -> None:
    """Files without ids get them from their names, and two files may have the same."""
    other = write(tmp_path / "other.jsonl", IDS, "en", note=", another text")
    data = open_training_data(
        config(first=SourceConfig(path=en), second=SourceConfig(path=other)), tiny
    )
    assert texts(data.held_out["en"], tiny) == [
        f"en {i}{note}" for note in ("", ", another text") for i in HELD_OUT
    ]


def test_without_validation(en: str, tiny: SentencePieceTokenizer) -> None:
    data = open_training_data(config(0, first=SourceConfig(path=en)), tiny)
    assert data.held_out == {}
    assert texts(data.loader.streams[0], tiny) == [f"en {i}" for i in IDS]


def test_sources_can_be_narrowed(tmp_path: Path, tiny: SentencePieceTokenizer) -> None:
    write(tmp_path / "a.jsonl", IDS, "en")
    write(tmp_path / "b.jsonl", IDS, "de")
    data = open_training_data(
        config(only=SourceConfig(path=str(tmp_path), languages=("de",))), tiny
    )
    assert list(data.held_out) == list(data.token_counts) == ["de"]


def test_the_tiny_preset(tiny: SentencePieceTokenizer) -> None:
    """All nine sources, each with something to train on and something held out;
    together they are the corpus.
    """
    data = open_training_data(DataConfig.preset("tiny"), tiny)
    names = ["en", "de", "es", "fr", "it", "nl", "pt", "code", "math"]
    assert data.loader.names == names
    assert sorted(data.held_out) == sorted(data.token_counts) == sorted(names)
    documents = load_corpus()
    held_out = {document.text for document in documents if is_validation(document.id, 10)}
    trained: set[str] = set()
    for name, stream in zip(names, data.loader.streams, strict=True):
        read = texts(stream, tiny)
        assert read == [
            d.text for d in documents if d.language == name and not is_validation(d.id, 10)
        ]
        trained.update(read)
    assert not held_out & trained
    assert {text for stream in data.held_out.values() for text in texts(stream, tiny)} == held_out
    assert held_out | trained == {document.text for document in documents}


# What is said


def test_records_that_cannot_be_used_are_counted_and_said(
    en: str, tmp_path: Path, tiny: SentencePieceTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(Path(en).read_bytes() + b'{"text": null}\n{"text": "\xe9"}\nbroken\n[]\n')
    good = open_training_data(config(first=SourceConfig(path=en)), tiny)
    assert caplog.messages == []
    found = open_training_data(config(first=SourceConfig(path=str(bad))), tiny)
    assert caplog.messages == [
        "data.sources.first: unusable records are left out: 2 no text, 1 not JSON, 1 not UTF-8"
    ]
    assert found.loader.fingerprint() == good.loader.fingerprint()


def test_no_record_that_can_be_used(tmp_path: Path, tiny: SentencePieceTokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("broken\n")
    with pytest.raises(DataError, match=r"^data\.sources\.first: .* \(left out: 1 not JSON\); "):
        open_training_data(config(first=SourceConfig(path=str(path))), tiny)
    path.write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match=r"no record has a field 'text' that holds a string; name"):
        open_training_data(config(first=SourceConfig(path=str(path))), tiny)


@pytest.mark.parametrize("ready", [False, True], ids=["on the spot", "prepared"])
def test_held_out_text_that_is_never_scored_is_said(
    en: str,
    tmp_path: Path,
    tiny: SentencePieceTokenizer,
    caplog: pytest.LogCaptureFixture,
    ready: bool,
) -> None:
    """Where every document is a language of its own, none has text to train on."""
    path = tmp_path / "own.jsonl"
    records = [{"id": i, "language": f"language of {i}", "text": f"Text {i}"} for i in IDS]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data: dict[str, Any] = {"validation_percent": 20, "sources": {"own": {"path": str(path)}}}
    if ready:
        prepared(tmp_path, data)
        data |= {"prepared": str(tmp_path / "prepared")}
        caplog.clear()
    open_training_data(RunConfig.from_dict({"data": data | {"tokenizer": "tiny"}}).data, tiny)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        f"data.validation_percent = 20: {len(HELD_OUT)} of {len(HELD_OUT)} held-out languages, such"
        f" as 'language of {min(HELD_OUT)}', have no text to train on and are not scored"
    )


def test_much_text_is_said_and_so_is_how_far_it_is(
    en: str,
    tiny: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    characters = sum(len(f"en {i}") for i in IDS)
    whole = open_training_data(config(first=SourceConfig(path=en)), tiny)
    monkeypatch.setattr(module, "BATCH", 100)
    monkeypatch.setattr(module, "MUCH", 150)
    monkeypatch.setattr(module, "SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        found = open_training_data(config(first=SourceConfig(path=en)), tiny)
    advice = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(advice) == 1
    assert advice[0].startswith("data.prepared = None: over 150 characters are tokenised")
    assert caplog.messages[-1] == f"tokenised {characters} characters so far"

    # in whatever batches, it is the same data
    assert found.loader.fingerprint() == whole.loader.fingerprint()
    assert texts(found.held_out["en"], tiny) == texts(whole.held_out["en"], tiny)
    assert found.token_counts["en"].tolist() == whole.token_counts["en"].tolist()


def test_text_takes_little_more_memory_than_its_size(
    tmp_path: Path, tiny: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of ids took over 20 times as much."""
    monkeypatch.setattr(module, "BATCH", 50_000)
    long = [document.text for document in load_corpus(languages=["en"])] * 8
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in long))
    table = config(first=SourceConfig(path=str(path)))
    open_training_data(
        config(first=SourceConfig(path=write(tmp_path / "b.jsonl", IDS, "en"))), tiny
    )
    tracemalloc.start()
    open_training_data(table, tiny)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = path.stat().st_size
    assert size > 800_000
    assert peak < 6 * size


# Errors


def test_nothing_to_read(tiny: SentencePieceTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"^data\.sources = \{\}: nothing to read; name sources"):
        open_training_data(config(), tiny)


def test_a_source_that_is_held_out_whole(tmp_path: Path, tiny: SentencePieceTokenizer) -> None:
    path = write(tmp_path / "a.jsonl", HELD_OUT, "en")
    with pytest.raises(
        DataError,
        match=r"^data\.sources\.first: has no text to train on; .* data\.validation_percent$",
    ):
        open_training_data(config(first=SourceConfig(path=path)), tiny)


def test_nothing_held_out(tmp_path: Path, tiny: SentencePieceTokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [i for i in IDS if i not in HELD_OUT], "en")
    complaint = (
        r"^data\.validation_percent = 20: no text fell into the held-out part; raise it, or set it"
        r" to 0 to train without validation"
    )
    with pytest.raises(DataError, match=complaint + "$"):
        open_training_data(config(first=SourceConfig(path=path)), tiny)
    with pytest.raises(DataError, match=complaint + ", and prepare another folder$"):
        open_training_data(
            prepared(tmp_path, {"validation_percent": 20, "sources": {"first": {"path": path}}}),
            tiny,
        )


def test_a_language_whose_held_out_text_is_empty_is_not_validated(
    en: str, tmp_path: Path, tiny: SentencePieceTokenizer
) -> None:
    de = tmp_path / "de.jsonl"
    rows = [{"id": i, "language": "de", "text": "" if i in HELD_OUT else "Ein Text."} for i in IDS]
    de.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = open_training_data(
        config(first=SourceConfig(path=en), second=SourceConfig(path=str(de))), tiny
    )
    assert list(found.held_out) == ["en"]
    assert sorted(found.token_counts) == ["de", "en"]


def test_a_prepared_language_without_held_out_tokens_is_not_validated(
    en: str, tmp_path: Path, tiny: SentencePieceTokenizer
) -> None:
    data = prepared(tmp_path, {"validation_percent": 20, "sources": {"first": {"path": en}}})
    path = tmp_path / "prepared" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["held_out"]["de"] = asdict(
        write_shard(path.parent, "held_out.de", TokenStream.from_documents([], tiny.eos_token_id))
    )
    path.write_text(json.dumps(manifest))
    found = open_training_data(data, tiny)
    assert list(found.held_out) == ["en"]
    assert texts(found.held_out["en"], tiny) == [f"en {i}" for i in HELD_OUT]


def test_a_source_that_cannot_be_read(tiny: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_training_data(config(first=SourceConfig(path="nowhere.jsonl")), tiny)
    with pytest.raises(
        DataError,
        match=(
            r"^data\.sources\.first: no document in the corpus \(left out: none\); check its path,"
            r" languages and domains$"
        ),
    ):
        open_training_data(config(first=SourceConfig(languages=("xx",))), tiny)
