"""From the [data] table to training and validation streams: nothing held out is trained on, nothing is scored twice."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slm2_minimal.config import ConfigError, DataConfig, DataError, SourceConfig
from slm2_minimal.data.assemble import assemble
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.text.corpus import is_validation, load_corpus
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

IDS = [f"doc-{i}" for i in range(40)]
HELD_OUT = [i for i in IDS if is_validation(i, 20)]


def texts(stream: TokenStream, tokenizer: SentencePieceTokenizer) -> list[str]:
    """The documents of a stream as text."""
    ends = [*stream.starts[1:].tolist(), len(stream.tokens)]
    return [tokenizer.decode(stream.tokens[a : b - 1].tolist()) for a, b in zip(stream.starts.tolist(), ends, strict=True)]


def write(path: Path, ids: Iterable[str], language: str, note: str = "") -> str:
    """A file whose texts say who they are."""
    records = [{"id": i, "language": language, "text": f"{language} {i}{note}"} for i in ids]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(percent: int = 20, **sources: SourceConfig) -> DataConfig:
    return DataConfig(tokenizer="tiny", seq_len=16, validation_percent=percent, sources=sources)


@pytest.fixture
def en(tmp_path: Path) -> str:
    return write(tmp_path / "en.jsonl", IDS, "en")


@pytest.fixture
def de(tmp_path: Path) -> str:
    return write(tmp_path / "de.jsonl", IDS, "de")


def test_what_goes_where(en: str, de: str, tiny: SentencePieceTokenizer) -> None:
    data = assemble(config(first=SourceConfig(path=en, weight=3), second=SourceConfig(path=de)), tiny)
    assert 4 <= len(HELD_OUT) <= 12
    assert data.loader.names == ["first", "second"]
    assert data.loader.mixture.stages[0].weights == (3, 1)
    assert (data.loader.seq_len, data.loader.seed) == (16, 1234)
    kept = [i for i in IDS if i not in HELD_OUT]
    for language, stream in zip(("en", "de"), data.loader.streams, strict=True):
        assert texts(stream, tiny) == [f"{language} {i}" for i in kept]
        assert data.token_counts[language].tolist() == np.bincount(stream.tokens, minlength=tiny.vocab_size).tolist()
        assert texts(data.held_out[language], tiny) == [f"{language} {i}" for i in HELD_OUT]
        assert stream.eos == tiny.eos_token_id
    assert sorted(data.held_out) == sorted(data.token_counts) == ["de", "en"]


def test_overlapping_sources_are_scored_once(en: str, de: str, tiny: SentencePieceTokenizer, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    write(both / "a.jsonl", IDS, "en")
    write(both / "b.jsonl", IDS, "de")
    data = assemble(config(first=SourceConfig(path=en), second=SourceConfig(path=str(both))), tiny)
    assert texts(data.held_out["en"], tiny) == [f"en {i}" for i in HELD_OUT]
    assert texts(data.held_out["de"], tiny) == [f"de {i}" for i in HELD_OUT]
    held_out = {f"{language} {i}" for language in ("en", "de") for i in HELD_OUT}
    for stream in data.loader.streams:
        assert not held_out & set(texts(stream, tiny))
    assert len(texts(data.loader.streams[1], tiny)) == 2 * (len(IDS) - len(HELD_OUT))


def test_the_same_id_on_different_texts_is_not_an_overlap(en: str, tmp_path: Path, tiny: SentencePieceTokenizer) -> None:
    """Files without ids get them from their names, and two files may have the same."""
    other = write(tmp_path / "other.jsonl", IDS, "en", note=", another text")
    data = assemble(config(first=SourceConfig(path=en), second=SourceConfig(path=other)), tiny)
    assert texts(data.held_out["en"], tiny) == [f"en {i}{note}" for note in ("", ", another text") for i in HELD_OUT]


def test_without_validation(en: str, tiny: SentencePieceTokenizer) -> None:
    data = assemble(config(0, first=SourceConfig(path=en)), tiny)
    assert data.held_out == {}
    assert texts(data.loader.streams[0], tiny) == [f"en {i}" for i in IDS]


def test_sources_can_be_narrowed(tmp_path: Path, tiny: SentencePieceTokenizer) -> None:
    write(tmp_path / "a.jsonl", IDS, "en")
    write(tmp_path / "b.jsonl", IDS, "de")
    data = assemble(config(only=SourceConfig(path=str(tmp_path), languages=("de",))), tiny)
    assert list(data.held_out) == list(data.token_counts) == ["de"]


def test_the_tiny_preset(tiny: SentencePieceTokenizer) -> None:
    """All nine sources, each with something to train on and something held out; together they are the corpus."""
    data = assemble(DataConfig.preset("tiny"), tiny)
    names = ["en", "de", "es", "fr", "it", "nl", "pt", "code", "math"]
    assert data.loader.names == names
    assert sorted(data.held_out) == sorted(data.token_counts) == sorted(names)
    documents = load_corpus()
    held_out = {document.text for document in documents if is_validation(document.id, 10)}
    trained: set[str] = set()
    for name, stream in zip(names, data.loader.streams, strict=True):
        read = texts(stream, tiny)
        assert read == [d.text for d in documents if d.language == name and not is_validation(d.id, 10)]
        trained.update(read)
    assert not held_out & trained
    assert {text for stream in data.held_out.values() for text in texts(stream, tiny)} == held_out
    assert held_out | trained == {document.text for document in documents}


def test_the_same_configuration_is_the_same_data(en: str, de: str, tiny: SentencePieceTokenizer) -> None:
    def fingerprint(**changes: Any) -> str:
        base = config(first=SourceConfig(path=en), second=SourceConfig(path=de))
        return assemble(base.replace(**changes), tiny).loader.fingerprint()

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(seed=5), fingerprint(seq_len=8), fingerprint(validation_percent=10)}) == 4


def test_nothing_to_read(tiny: SentencePieceTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"^data\.sources = \{\}: nothing to read; name sources"):
        assemble(config(), tiny)


def test_a_source_that_is_held_out_whole(tmp_path: Path, tiny: SentencePieceTokenizer) -> None:
    path = write(tmp_path / "a.jsonl", HELD_OUT, "en")
    with pytest.raises(DataError, match=r"^data\.sources\.first: has no text to train on; .* data\.validation_percent$"):
        assemble(config(first=SourceConfig(path=path)), tiny)


def test_nothing_held_out(tmp_path: Path, tiny: SentencePieceTokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [i for i in IDS if i not in HELD_OUT], "en")
    with pytest.raises(
        DataError, match=r"^data\.validation_percent = 20: no document fell into the held-out part; raise it, or set it to 0"
    ):
        assemble(config(first=SourceConfig(path=path)), tiny)


def test_a_source_that_cannot_be_read(tiny: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        assemble(config(first=SourceConfig(path="nowhere.jsonl")), tiny)
    with pytest.raises(DataError, match=r"no document with languages = \['xx'\]"):
        assemble(config(first=SourceConfig(languages=("xx",))), tiny)
