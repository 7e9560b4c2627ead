"""The scripts behind the recorded results: each record names one that is there, and
what the stability and retrieval runs measure is what they say.
"""

import importlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from book import notebooks
from slm2_minimal.config import IGNORE
from slm2_minimal.evaluate.retrieval import PHRASES
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from slm2_minimal.train.trainer import TrainingError

BOOK = Path(notebooks.__file__).parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A script as Python runs it: with its own folder first on the path. Scripts have
    common names, so they are forgotten.
    """
    monkeypatch.syspath_prepend(str(BOOK / "experiments"))
    before = set(sys.modules)
    yield importlib.import_module
    for path in (BOOK / "experiments").glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


@pytest.fixture
def stability(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("stability")


@pytest.fixture
def digits(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("digits")


@pytest.mark.parametrize(
    "path", sorted((BOOK / "recorded").glob("*.json")), ids=lambda path: path.stem
)
def test_a_record_names_a_script_that_is_there(path: Path) -> None:
    python, script, *_ = json.loads(path.read_text())["command"].split()
    assert python == "python"
    assert (BOOK.parent / script).is_file()


def test_a_spike_is_the_largest_rise_above_the_recent_mean(stability: ModuleType) -> None:
    assert stability.spike([5.0, 4.0, 6.0, 5.0]) == 1.5  # 6 above the mean of 5 and 4
    assert stability.spike([5.0, 4.0, 3.0]) == -1.0
    assert stability.spike([9.0] + [1.0] * 20 + [4.0]) == 3.0  # the 9 is 21 steps back
    assert stability.spike([7.0, 10.0, 5.0, 5.0]) == 3.0  # a blow-up in the first steps counts


def test_pairs_differ_in_the_biases_of_the_norms_only(
    stability: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves, train_toy = [], stability.train_toy

    def listen(*arguments: Any, **overrides: Any) -> dict[str, Any]:
        curves.append(train_toy(*arguments, **overrides))
        return curves[-1]

    monkeypatch.setattr(stability, "train_toy", listen)
    for bias in (True, False):
        found = stability.measure(7, 0.01, bias, seed=0)
        assert found["loss"] == curves[-1]["validation"][7]["en"]
        assert found["grad_norm"] > median(curves[-1]["grad_norms"])
    with_bias, without = (curve["losses"] for curve in curves)
    assert with_bias[0] == without[0]
    assert with_bias[1] != without[1]


def test_a_run_that_comes_to_no_end_has_diverged(
    stability: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrainingError("not finite")

    monkeypatch.setattr(stability, "train_toy", fail)
    assert set(stability.measure(3, 0.01, True, seed=0).values()) == {math.inf}


def test_what_the_retrieval_toys_learn(
    script: Callable[[str], ModuleType], tiny: SentencePieceTokenizer
) -> None:
    """A digit that the document told before, and the space before it; nothing else."""
    retrieval = script("retrieval")
    statement = tiny.encode(f" {PHRASES['en'].passkey} ")
    stream, learned = retrieval.stream_of_documents(20_000, seed=0)
    starts = [*stream.starts.tolist(), stream.num_tokens]
    counted = 0
    for begin, end in itertools.pairwise(starts):
        ids = stream.tokens[begin:end].tolist()
        places = range(len(statement), len(ids) - 1)  # the end of text is no digit
        digits = [t for t in places if ids[t - len(statement) : t] == statement]
        assert len({ids[t] for t in digits}) <= 1
        wanted = {place for t in digits[1:] for place in (t - 1, t)}
        assert set(np.flatnonzero(learned[begin:end])) - wanted <= {len(ids) - 2}
        assert wanted <= set(np.flatnonzero(learned[begin:end]))
        counted += len(wanted)
    assert counted > 200
    other, _ = retrieval.stream_of_documents(20_000, seed=1)
    assert stream.digest() != other.digest()


def test_the_retrieval_toys_differ_in_what_they_are_named_for(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    retrieval = script("retrieval")
    monkeypatch.setattr(retrieval, "BATCH_TOKENS", 1024)
    toys = [
        retrieval.train(context, 3, 0, turned, restart)
        for context, turned, restart in (
            (128, 0.25, True), (256, 0.25, True), (128, 1.0, True), (128, 0.25, False)
        )
    ]  # fmt: skip
    assert [toy.config.partial_rotary_factor for toy in toys] == [0.25, 0.25, 1.0, 0.25]
    weights = [toy.lm_head.weight for toy in toys]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2))
    assert torch.equal(retrieval.train(128, 3, 0, 0.25, True).lm_head.weight, weights[0])


@pytest.mark.parametrize(
    ("cut", "pieces"), [("single", "1|2|3|4|+|7|=|1|2|4|1|\n"), ("left", "123|4|+|7|=|124|1|\n")]
)
def test_numbers_are_cut_as_named_and_only_sums_are_learned(
    digits: ModuleType, cut: str, pieces: str
) -> None:
    names = {number: piece for piece, number in digits.vocabulary(cut).items()}
    assert "|".join(names[i] for i in digits.encode("1234+7=1241\n", cut)) == pieces
    ids, labels = digits.batch([(1234, 7), (2, 3)], cut)
    assert ids.shape == labels.shape
    learned = [[names[i] for i in row if i != IGNORE] for row in labels.tolist()]
    assert learned == [pieces.partition("=|")[2].split("|"), ["5", "\n"]]


def test_what_is_asked_is_never_trained_on(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every way of cutting sees the same additions."""
    asked = {2: [(a, b) for a in range(10, 100) for b in range(10, 60)]}
    seen: dict[str, list[Any]] = {"single": [], "left": []}
    batch = digits.batch

    def listen(additions: Any, cut: str) -> Any:
        seen[cut] += additions
        return batch(additions, cut)

    monkeypatch.setattr(digits, "tests", lambda: asked)
    monkeypatch.setattr(digits, "batch", listen)
    for cut in seen:
        digits.train(cut, seed=0, steps=2)
    assert seen["single"] == seen["left"]
    two = [b for a, b in seen["left"] if 10 <= a < 100]
    assert two
    assert min(two) >= 60


def test_a_sum_is_right_where_every_token_of_it_is_the_likeliest(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows no carry."""
    additions = [(1, 2), (5, 5), (14, 23), (19, 1)]
    wrong = digits.batch([(1, 2), (5, 0), (14, 23), (18, 0)], "single")[1]
    width = len(digits.vocabulary("single"))
    logits = 30.0 * one_hot(wrong.clamp(min=0), width)
    found = digits.measure(lambda ids, head=None: logits, additions, "single")
    assert found["right"] == 0.5
