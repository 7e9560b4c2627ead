"""What the [data] table says of the order: seed, stages, temperature, subsets, caps."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.config import DataError, RunConfig, SourceConfig
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.training_data import build_loader, open_training_data
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from tests.data.conftest import HELD_OUT, IDS, config, prepared, write


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
