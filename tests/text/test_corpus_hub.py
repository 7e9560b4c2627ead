"""Texts from the Hub through `datasets`, which a stand-in replaces here."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm2_minimal.config import MissingExtraError
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import HUB_ID, Document
from tests.complaints import data_error as complaint

# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A folder in the Hub's own format, with two configurations, under the name
    `owner/set-1.5`; returns what was asked for.
    """
    folder = tmp_path / "hub"
    for configuration, language in (("default", "en"), ("plus.de", "de")):
        (folder / configuration).mkdir(parents=True)
        for part in range(2):
            rows = [{"text": f"{language} {part} {i}", "language": language} for i in range(2)]
            pq.write_table(
                pa.Table.from_pylist(rows),
                folder / configuration / f"train-{part:05d}-of-00002.parquet",
            )
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: default/train-*.parquet\n"
        "- config_name: plus.de\n  data_files: plus.de/train-*.parquet\n---\n"
    )
    load_dataset, asked = datasets.load_dataset, []

    def from_folder(path: str, name: str | None = None, **options: Any) -> Any:
        asked.append((path, name, options))
        return load_dataset(str(folder), name, **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return asked


def test_hub_set(hub: list[tuple[Any, ...]]) -> None:
    documents = load_corpus("owner/set-1.5")
    assert [document.text for document in documents] == ["en 0 0", "en 0 1", "en 1 0", "en 1 1"]
    assert documents[2] == Document("set-1.5-2", "en", "text", "", "en 1 0")
    assert hub == [("owner/set-1.5", None, {"split": "train", "streaming": True})]


def test_hub_configuration_and_limit(hub: list[tuple[Any, ...]]) -> None:
    assert [document.text for document in load_corpus("owner/set-1.5:plus.de", limit=3)] == [
        "de 0 0",
        "de 0 1",
        "de 1 0",
    ]
    assert hub[0][:2] == ("owner/set-1.5", "plus.de")


@pytest.mark.parametrize(
    "name", ["owner/name", "0-o.w_n/N.a-m_e2", "a/b", "owner/name:plus.de", "owner/name:two words"]
)
def test_what_a_hub_id_looks_like(name: str) -> None:
    assert HUB_ID.fullmatch(name)
    for other in (f"/{name}", f"{name}/", f"~/{name}", f"../{name}", f"é{name}"):
        assert not HUB_ID.fullmatch(other)


def test_hub_configuration_that_is_not_there(hub: list[tuple[Any, ...]]) -> None:
    message = complaint(lambda: load_corpus("owner/set-1.5:fr"))
    assert message.startswith(
        "path = 'owner/set-1.5:fr': neither a local file or folder nor to be had from the Hub ("
    )


def test_hub_offline() -> None:
    """The real `load_dataset`; the test run sets HF_HUB_OFFLINE, so that it does not
    try for half a minute.
    """
    message = complaint(lambda: load_corpus("owner/name"))
    assert message.startswith(
        "path = 'owner/name': neither a local file or folder nor to be had from the Hub (Couldn't"
        " reach"
    )


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("no route\nsecond line"),
        ValueError(""),
        RuntimeError("Dataset scripts are no longer supported, but found x.py"),
    ],
)
def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", fail)
    reason = str(failure).split("\n")[0] or type(failure).__name__
    assert f"from the Hub ({reason}); check the path; gated sets need `hf auth login`" in complaint(
        lambda: load_corpus("owner/name")
    )


def test_hub_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "one"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    assert (
        complaint(lambda: load_corpus("owner/name"))
        == "owner/name: cannot be read (reset by peer); check or copy it again"
    )


def test_hub_without_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingExtraError,
        match=(
            r"^'owner/name' is no local file or folder here, and reading it from the Hub needs the"
            r" package 'datasets'"
        ),
    ):
        load_corpus("owner/name")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(MissingExtraError, match="needs the package 'pyarrow'"):
        load_corpus(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("no need of it")
    assert load_corpus(tmp_path / "a.txt")
