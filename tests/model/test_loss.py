"""The summed loss, the log-probabilities of tokens and their gradients against torch's
own, and their independence of how a batch is cut.
"""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import slm2_minimal.model.loss as loss_module
from slm2_minimal.config import IGNORE, ModelConfig
from slm2_minimal.data.loader import Batch
from slm2_minimal.model.loss import summed_cross_entropy, token_log_probs
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.step import accumulate_gradients

CPU = torch.device("cpu")
BF16 = torch.bfloat16


def inputs(
    rows: int = 3, length: int = 40, channels: int = 16, vocab: int = 97
) -> tuple[Tensor, nn.Linear, Tensor]:
    """Hidden states, a head, and labels of which three in ten are ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, length, channels, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, channels, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocab, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.3] = IGNORE
    return hidden, linear(weight), labels


def linear(weight: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = nn.Parameter(weight.detach())
    return head


@pytest.fixture(params=["selected", "masked"])
def ignored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How ignored tokens are kept out: as on a CPU, and as on a GPU, where all tokens
    are projected.
    """
    if request.param == "masked":
        only_valid = loss_module.token_chunks
        monkeypatch.setattr(
            loss_module,
            "token_chunks",
            lambda targets, size: only_valid(targets.clamp(min=0), size),
        )


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
@pytest.mark.usefixtures("ignored")
def test_value_and_gradients(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 4 * 97 * chunk_tokens)
    hidden, head, labels = inputs()
    ours = summed_cross_entropy(hidden, head, labels)
    theirs = F.cross_entropy(
        head(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(ours, theirs)
    ours_grads, their_grads = (
        torch.autograd.grad(loss * 0.3, (hidden, head.weight)) for loss in (ours, theirs)
    )
    torch.testing.assert_close(ours_grads, their_grads, atol=1e-5, rtol=1e-4)


def test_by_hand() -> None:
    """Two tokens, logits (0, 0) and (ln 3, 0): the losses are ln 2 and -ln(3/4)."""
    hidden, labels = torch.tensor([[[0.0], [1.0986123]]]), torch.tensor([[1, 0]])
    head = linear(torch.tensor([[1.0], [0.0]]))
    loss = summed_cross_entropy(hidden, head, labels)
    assert loss.item() == pytest.approx(0.6931472 + 0.2876821, abs=1e-6)
    log_probs = token_log_probs(hidden, head, labels)
    torch.testing.assert_close(log_probs, -torch.tensor([[0.6931472, 0.2876821]]))


@pytest.mark.usefixtures("ignored")
def test_all_ignored_is_zero_and_never_nan() -> None:
    hidden, head, labels = inputs()
    nothing = torch.full_like(labels, IGNORE)
    loss = summed_cross_entropy(hidden, head, nothing)
    log_probs = token_log_probs(hidden, head, nothing)
    assert loss.item() == 0
    assert torch.equal(log_probs, torch.zeros(labels.shape))
    for value in (loss, log_probs.sum()):
        assert all((grad == 0).all() for grad in torch.autograd.grad(value, (hidden, head.weight)))


def test_large_logits_do_not_overflow() -> None:
    hidden, head, labels = inputs()
    assert torch.isfinite(summed_cross_entropy(hidden * 1e4, head, labels))
    assert torch.isfinite(token_log_probs(hidden * 1e4, head, labels)).all()


def test_autocast_computes_in_16_bits_and_keeps_fp32_gradients() -> None:
    hidden, head, labels = inputs()
    exact = summed_cross_entropy(hidden, head, labels)
    with torch.autocast("cpu", dtype=BF16):
        loss = summed_cross_entropy(hidden, head, labels)
        log_probs = token_log_probs(hidden, head, labels)
    for value in (loss, -log_probs.sum()):
        assert value.dtype == torch.float32
        assert value.item() != exact.item()
        assert value.item() == pytest.approx(exact.item(), rel=1e-2)
        gradients = torch.autograd.grad(value, (hidden, head.weight))
        assert all(grad.dtype == torch.float32 for grad in gradients)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, head, labels = inputs()
    for loss in (summed_cross_entropy, token_log_probs):
        (grad,) = torch.autograd.grad(loss(hidden.detach(), head, labels).sum(), head.weight)
        assert grad.abs().sum() > 0
        with torch.no_grad():
            assert loss(hidden, head, labels).requires_grad is False


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
@pytest.mark.usefixtures("ignored")
def test_log_probabilities_of_tokens(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of any weighting of the tokens, against log_softmax."""
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 4 * 97 * chunk_tokens)
    hidden, head, labels = inputs()
    ours = token_log_probs(hidden, head, labels)
    chosen = head(hidden).log_softmax(-1).gather(2, labels.clamp(min=0)[..., None]).squeeze(2)
    theirs = torch.where(labels == IGNORE, 0.0, chosen)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    ours_grads, their_grads = (
        torch.autograd.grad(value, (hidden, head.weight), direction) for value in (ours, theirs)
    )
    torch.testing.assert_close(ours_grads, their_grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
def test_the_loss_is_minus_the_sum_of_the_log_probabilities(dtype: torch.dtype) -> None:
    hidden, head, labels = inputs()
    with torch.autocast("cpu", dtype=BF16, enabled=dtype == BF16):
        loss = summed_cross_entropy(hidden, head, labels)
        summed = -token_log_probs(hidden, head, labels).sum()
    torch.testing.assert_close(loss, summed, atol=1e-3, rtol=1e-5)
    gradients, others = (
        torch.autograd.grad(value, (hidden, head.weight)) for value in (loss, summed)
    )
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(gradients, others, atol=tolerance, rtol=tolerance)


class Doubled(nn.Module):
    """A head that is no nn.Linear, with a parameter of its own."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.scale * self.head(hidden)


def test_any_module_may_be_the_head_of_log_probabilities() -> None:
    hidden, head, labels = inputs()
    doubled = Doubled(head)
    log_probs = token_log_probs(hidden, doubled, labels)
    torch.testing.assert_close(log_probs, token_log_probs(2 * hidden, head, labels))
    (grad,) = torch.autograd.grad(log_probs.sum(), doubled.scale)
    assert grad != 0
    with pytest.raises(AssertionError, match="token_log_probs with a Doubled"):
        summed_cross_entropy(hidden, doubled, labels)
    with pytest.raises(AssertionError, match="bias"):
        summed_cross_entropy(hidden, nn.Linear(16, 97), labels)


class LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("loss", [summed_cross_entropy, token_log_probs])
def test_the_logits_of_the_whole_batch_never_live(
    loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor of forward or backward is larger than a chunk's logits."""
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 4 * 97 * 20)
    hidden, head, labels = inputs()
    with LargestTensor() as largest:
        loss(hidden, head, labels).sum().backward()
    assert largest.elements == max(97 * 20, hidden.numel())


@pytest.mark.parametrize("loss", [summed_cross_entropy, token_log_probs])
def test_a_gpus_host_never_waits_for_a_value(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward run on the meta device, where no tensor has values: neither
    a number nor a shape is made of one.
    """
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "meta", 4 * 97 * 20)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    hidden = torch.empty(3, 40, 16, device="meta", requires_grad=True)
    head = nn.Linear(16, 97, bias=False, device="meta")
    loss(hidden, head, torch.empty(3, 40, dtype=torch.int64, device="meta")).sum().backward()
    assert hidden.grad is not None
    with pytest.raises((RuntimeError, NotImplementedError)):
        (hidden > 0).nonzero()


def small_model_and_batch() -> tuple[StableLM2, Batch]:
    config = ModelConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = StableLM2(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    ids = torch.randint(0, 97, (8, 17), generator=generator)
    labels = ids[:, 1:].clone()
    for row in range(8):
        labels[row, : 2 * row] = IGNORE  # very unequal counts of valid tokens
    positions = torch.arange(16).expand(8, 16)
    return model, Batch(ids[:, :-1], labels, positions, torch.zeros_like(positions))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_accumulation_changes_nothing(rows: int) -> None:
    model, batch = small_model_and_batch()
    whole = accumulate_gradients(model, [batch])
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    cut = accumulate_gradients(model, batch.split(rows))
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(
        [parameter.grad for parameter in model.parameters()], expected, atol=1e-6, rtol=1e-4
    )

    # a mean of micro-batch means would not do
    means = []
    for part in batch.split(rows):
        head = partial(summed_cross_entropy, labels=part.labels)
        means.append(model(part.input_ids, head=head).item() / part.valid_tokens)
    assert abs(sum(means) / len(means) - whole.item()) > 1e-3


def test_mean_loss_is_torchs() -> None:
    model, batch = small_model_and_batch()
    expected = F.cross_entropy(
        model(batch.input_ids).flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE
    )
    torch.testing.assert_close(accumulate_gradients(model, [batch]), expected.detach())
