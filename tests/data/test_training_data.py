"""From the [data] table to training and validation streams: nothing held out is trained
on, nothing is scored twice.
"""

import json
import logging
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slm2_minimal.config import ConfigError, DataConfig, DataError, RunConfig, SourceConfig
from slm2_minimal.data import training_data as module
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import write_shard
from slm2_minimal.data.training_data import build_loader, open_training_data
from slm2_minimal.prepare.run import prepare
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

IDS = [f"doc-{i}" for i in range(40)]
HELD_OUT = [i for i in IDS if is_validation(i, 20)]


def texts(stream: TokenStream, tokenizer: SentencePieceTokenizer) -> list[str]:
    """The documents of a stream as text."""
    ends = [*stream.starts[1:].tolist(), len(stream.tokens)]
    return [
        tokenizer.decode(stream.tokens[a : b - 1].tolist())
        for a, b in zip(stream.starts.tolist(), ends, strict=True)
    ]


def write(path: Path, ids: Iterable[str], language: str, note: str = "") -> str:
    """A file whose texts say who they are."""
    records = [{"id": i, "language": language, "text": f"{language} {i}{note}"} for i in ids]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(percent: int = 20, **sources: SourceConfig) -> DataConfig:
    return DataConfig(tokenizer="tiny", seq_len=16, validation_percent=percent, sources=sources)


def prepared(folder: Path, data: dict[str, Any], **options: Any) -> DataConfig:
    """What `prepare` makes of a `[data]` table: its configuration."""
    table = {"min_characters": 1, "duplicates": "keep", "workers": 1} | options
    run = RunConfig.from_dict(
        {
            "data": {"tokenizer": "tiny", "prepared": str(folder / "prepared")} | data,
            "prepare": table,
        }
    )
    prepare(run)
    return run.data


@pytest.fixture
def en(tmp_path: Path) -> str:
    return write(tmp_path / "en.jsonl", IDS, "en")


@pytest.fixture
def de(tmp_path: Path) -> str:
    return write(tmp_path / "de.jsonl", IDS, "de")


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


def test_the_same_configuration_is_the_same_data(
    en: str, de: str, tiny: SentencePieceTokenizer
) -> None:
    def fingerprint(**changes: Any) -> str:
        base = config(first=SourceConfig(path=en), second=SourceConfig(path=de))
        return open_training_data(base.replace(**changes), tiny).loader.fingerprint()

    assert fingerprint() == fingerprint()
    assert (
        len(
            {
                fingerprint(),
                fingerprint(seed=5),
                fingerprint(seq_len=8),
                fingerprint(validation_percent=10),
            }
        )
        == 4
    )


@pytest.mark.parametrize("ready", [False, True], ids=["on the spot", "prepared"])
def test_a_cap_may_be_raised_in_the_same_data(
    en: str, tmp_path: Path, tiny: SentencePieceTokenizer, ready: bool
) -> None:
    """How often a source may be read changes no sequence of the order."""
    data: dict[str, Any] = {"sources": {"first": {"path": en, "max_epochs": 1.0}}}
    if ready:
        prepared(tmp_path, data)
        data |= {"prepared": str(tmp_path / "prepared")}
    loaders = []
    for cap in (1.0, 2.0, 9.0):
        data["sources"]["first"]["max_epochs"] = cap
        run = RunConfig.from_dict({"data": data | {"tokenizer": "tiny", "seq_len": 16}})
        loaders.append(open_training_data(run.data, tiny).loader)
    assert len({loader.fingerprint() for loader in loaders}) == 1
    limits = [loader.mixture.limits[0] for loader in loaders]
    assert limits == [limits[0], 2 * limits[0], 9 * limits[0]]


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


# What the configuration says of the order


def loader_of(sources: dict[str, Any], **table: Any) -> Loader:
    """The loader that a `[data]` table makes over source a, of 720 tokens or 90
    sequences, and b, of 80 tokens or 10.
    """
    data = RunConfig.from_dict({"data": {"seq_len": 8, "sources": sources} | table}).data
    streams = {
        name: TokenStream.from_documents([range(1, length)], 0)
        for name, length in (("a", 720), ("b", 80))
    }
    return build_loader(data, streams)


def turns(loader: Loader, start: int, stop: int) -> Counter[str]:
    return Counter(loader.names[loader.locate(position)[0]] for position in range(start, stop))


def test_stages_start_after_their_tokens() -> None:
    """64 tokens are 8 sequences."""
    stages = [
        {"start_tokens": 64, "weights": {"a": 3, "b": 1}},
        {"start_tokens": 128, "weights": {"b": 1}},
    ]
    loader = loader_of({"a": {}, "b": {}}, stages=stages)
    assert turns(loader, 0, 8) == {"a": 4, "b": 4}
    assert turns(loader, 8, 16) == {"a": 6, "b": 2}
    assert turns(loader, 16, 24) == {"b": 8}


def test_a_temperature_takes_the_place_of_the_weights() -> None:
    """Of nine times as many tokens, at temperature 2, three times as many are read,
    whatever the weights.
    """
    sources = {"a": {"weight": 1}, "b": {"weight": 9}}
    assert turns(loader_of(sources), 0, 20) == {"a": 2, "b": 18}
    assert turns(loader_of(sources, temperature=2.0), 0, 20) == {"a": 15, "b": 5}


def test_a_subset_of_a_source_is_read() -> None:
    """Half of the ten sequences of b, again in every epoch, and all of a."""
    loader = loader_of({"a": {"weight": 9}, "b": {"weight": 1, "subset": 0.5}})
    read = [loader.locate(position) for position in range(100)]
    assert [len({index for source, _, index in read if source == number}) for number in (0, 1)] == [
        90,
        5,
    ]


def test_epochs_are_capped_by_source() -> None:
    """The 10 sequences of b have every second turn, so twice or four times they last to
    position 40 or 80.
    """
    for cap, end in ((2.0, 40), (4.0, 80)):
        loader = loader_of({"a": {"max_epochs": 0.5}, "b": {"max_epochs": cap}})
        loader.mixture.check_epochs(end)
        with pytest.raises(DataError, match=rf"^data\.sources\.b\.max_epochs = {cap}: "):
            loader.mixture.check_epochs(end + 2)
    with pytest.raises(
        DataError, match=r"^data\.sources\.b\.max_epochs = 4\.0: "
    ):  # where nothing is said
        loader_of({"a": {}, "b": {}}).mixture.check_epochs(82)


@pytest.mark.parametrize("ready", [False, True], ids=["on the spot", "prepared"])
def test_shares_follow_the_tokens_that_are_trained_on(
    en: str, tmp_path: Path, tiny: SentencePieceTokenizer, ready: bool
) -> None:
    """At temperature 1 the share of a source is that of its tokens, in the
    ten-thousandths that shares are rounded to.
    """
    kept = [i for i in IDS if i not in HELD_OUT]
    few = write(tmp_path / "few.jsonl", kept[:5], "en", note=", another text")
    data = {
        "seq_len": 16,
        "temperature": 1.0,
        "validation_percent": 20,
        "sources": {"many": {"path": en}, "few": {"path": few}},
    }
    run = (
        prepared(tmp_path, data)
        if ready
        else RunConfig.from_dict({"data": data | {"tokenizer": "tiny"}}).data
    )
    tokens = [
        sum(len(tiny.encode(f"en {i}{note}")) + 1 for i in ids)
        for ids, note in ((kept, ""), (kept[:5], ", another text"))
    ]
    weights = open_training_data(run, tiny).loader.mixture.stages[0].weights
    assert weights[0] / sum(weights) == pytest.approx(tokens[0] / sum(tokens), abs=1e-4)
    assert tokens[0] > 2 * tokens[1]


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
