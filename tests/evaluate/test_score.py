"""Packed scoring against each request alone, and against sums by hand."""

import random
import re

import pytest
import torch

from slm2_minimal.config import DataError
from slm2_minimal.evaluate import score as module
from slm2_minimal.evaluate.score import Request, Score, pack, rolling, score, windows
from slm2_minimal.inference.quantise import quantise
from slm2_minimal.model.transformer import StableLM2
from tests.models import SMALL, TINY, randomised

CONTEXT = SMALL.max_position_embeddings


def alone(model: StableLM2, context: list[int], continuation: list[int]) -> Score:
    """By the definition: all logits of one row."""
    ids = [*context, *continuation][-(model.config.max_position_embeddings + 1) :]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    scored = torch.tensor(continuation)
    found = logits[-len(continuation) :]
    total = found.gather(1, scored[:, None]).sum().item()
    return Score(total, bool((found.argmax(-1) == scored).all()))


def greedy_continuation(model: StableLM2, context: list[int], count: int) -> list[int]:
    ids = list(context)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids[-CONTEXT:]]))[0, -1].argmax()))
    return ids[len(context) :]


@pytest.fixture(scope="module")
def model() -> StableLM2:
    return randomised(SMALL)


def some_requests(model: StableLM2, count: int = 60) -> list[Request]:
    """Of all lengths, also longer than the context; every fifth is the likeliest."""
    choose = random.Random(0)
    requests = []
    for number in range(count):
        context = choose.choices(range(7), k=choose.randint(1, 2 * CONTEXT))
        length = choose.randint(1, CONTEXT)
        if number % 5 == 0:
            length = min(length, 4)
            continuation = greedy_continuation(model, context, length)
        else:
            continuation = choose.choices(range(7), k=length)
        requests.append(Request(context, continuation))
    return requests


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 4096])
def test_packed_is_one_by_one(model: StableLM2, tokens_per_batch: int) -> None:
    requests = some_requests(model)
    found = score(model, requests, tokens_per_batch=tokens_per_batch)
    assert len({each.greedy for each in found}) == 2
    for request, one in zip(requests, found, strict=True):
        by_hand = alone(model, *request)
        assert one.log_prob == pytest.approx(by_hand.log_prob, abs=1e-5)
        assert one.greedy == by_hand.greedy


def test_a_row_holds_many_requests_of_a_longer_context() -> None:
    longer = randomised(TINY.replace(max_position_embeddings=600))
    choose = random.Random(1)
    requests = [
        Request(choose.choices(range(1024), k=k), choose.choices(range(1024), k=3))
        for k in (550, 300, 200, 40, 40, 40, 6)
    ]
    rows = pack([len(context) + 2 for context, _ in requests], 600)
    assert [row.members for row in rows] == [[0], [1, 2, 6], [5, 4, 3]]
    for request, one in zip(requests, score(longer, requests), strict=True):
        assert one.log_prob == pytest.approx(alone(longer, *request).log_prob, abs=1e-4)


def test_next_to_nothing_is_padding() -> None:
    """What the model is given, against what has to be read."""
    longer = randomised(TINY.replace(max_position_embeddings=1024))
    choose = random.Random(2)
    requests = [
        Request(choose.choices(range(9), k=choose.randint(5, 60)), [1, 2, 3]) for _ in range(200)
    ]
    shapes = []
    hook = longer.model.layers[0].register_forward_pre_hook(
        lambda _, args: shapes.append(args[0].shape[:2].numel())
    )
    score(longer, requests)
    hook.remove()
    needed = sum(len(context) + 2 for context, _ in requests)
    assert needed <= sum(shapes) < 1.01 * needed + module.ROW_TOKENS


def test_an_empty_context_is_the_end_of_text(model: StableLM2) -> None:
    [found] = score(model, [Request([], [3, 4])])
    assert found.log_prob == pytest.approx(alone(model, [0], [3, 4]).log_prob, abs=1e-5)
    without = StableLM2(SMALL.replace(eos_token_id=None))
    with pytest.raises(DataError, match=r"model.eos_token_id = None: .* give the model's one"):
        score(without, [Request([], [3])])


def test_what_a_shorter_window_leaves(model: StableLM2, caplog: pytest.LogCaptureFixture) -> None:
    requests = [Request([1, 2, 3, 4, 5, 6], [2, 4]), Request([1, 2, 3], [2, 4])]
    with caplog.at_level("INFO", "slm2_minimal"):
        found, _ = score(model, requests, max_length=4)
    assert caplog.messages == ["scoring | 1 of 2 contexts are cut to fit 4 tokens"]
    assert found.log_prob == pytest.approx(alone(model, [4, 5, 6], [2, 4]).log_prob, abs=1e-5)


def test_no_requests(model: StableLM2) -> None:
    assert score(model, []) == []


def test_a_quantised_model() -> None:
    small = quantise(randomised(TINY), 8)
    request = Request([1, 2, 3], [4, 5])
    [found] = score(small, [request])
    assert found.log_prob == pytest.approx(alone(small, *request).log_prob, abs=1e-3)


@pytest.mark.parametrize("length", [1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 5])
@pytest.mark.parametrize("overlap", [1, 5, CONTEXT])
def test_rolling_is_a_direct_sum(model: StableLM2, length: int, overlap: int) -> None:
    """Every token once, each after as much as the windows show."""
    ids = random.Random(length).choices(range(7), k=length)
    requests = list(windows(ids, 0, CONTEXT, overlap))
    assert [token for _, scored in requests for token in scored] == ids
    for context, scored in requests[1:]:
        assert len(context) >= overlap
        assert len(context) + len(scored) == CONTEXT + 1
    expected = sum(alone(model, *request).log_prob for request in requests)
    assert rolling(model, ids, overlap=overlap) == pytest.approx(expected, abs=1e-4)


def test_a_text_that_fits_is_summed_in_one(model: StableLM2) -> None:
    ids = [3, 1, 4, 1, 5]
    with torch.no_grad():
        logits = model(torch.tensor([[0, *ids[:-1]]]))[0].double().log_softmax(-1)
    expected = logits.gather(1, torch.tensor(ids)[:, None]).sum().item()
    assert rolling(model, ids) == pytest.approx(expected, abs=1e-5)
    assert rolling(model, []) == 0


@pytest.mark.parametrize(
    ("request_", "options", "says"),
    [
        (Request([1], []), {}, "requests[1].continuation = 0 tokens: must have from 1 to 16"),
        (Request([1], [2] * 17), {}, "requests[1].continuation = 17 tokens: must have from 1"),
        (Request([1], [2] * 5), {"max_length": 4}, "= 5 tokens: must have from 1 to 4, the window"),
        (Request([1], [2]), {"max_length": 17}, "max_length = 17: must lie between 1 and"),
        (Request([1], [2]), {"max_length": 0}, "max_length = 0: must lie between 1 and"),
    ],
)
def test_what_cannot_be_scored_is_said_before_anything_is(
    model: StableLM2, request_: Request, options: dict[str, int], says: str
) -> None:
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(DataError, match=re.escape(says)):
        score(model, [Request([1], [2]), request_], **options)
    hook.remove()
    assert not calls


def test_long_work_says_how_far_it_is(
    model: StableLM2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", -1)
    with caplog.at_level("INFO", "slm2_minimal"):
        score(model, [Request([1], [2])] * 20, tokens_per_batch=16)
    assert caplog.messages == ["scoring | 16 of 20 requests", "scoring | 20 of 20 requests"]
