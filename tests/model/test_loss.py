"""The summed loss and its gradients against torch's own cross-entropy, and its
independence of how a batch is cut.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import slm2_minimal.model.loss as loss_module
from slm2_minimal.config import IGNORE, ModelConfig
from slm2_minimal.data.loader import Batch
from slm2_minimal.model.loss import summed_cross_entropy
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.step import accumulate_gradients

CPU = torch.device("cpu")


def inputs(
    rows: int = 3, length: int = 40, channels: int = 16, vocab: int = 97
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, length, channels, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, channels, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocab, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.3] = IGNORE
    return hidden, weight, labels


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_value_and_gradients(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 4 * 97 * chunk_rows)
    hidden, weight, labels = inputs()
    ours = summed_cross_entropy(hidden, weight, labels)
    theirs = F.cross_entropy(
        (hidden @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(ours, theirs)
    ours_grads = torch.autograd.grad(ours * 0.3, (hidden, weight))
    torch.testing.assert_close(
        ours_grads, torch.autograd.grad(theirs * 0.3, (hidden, weight)), atol=1e-5, rtol=1e-4
    )


def test_by_hand() -> None:
    """Two tokens, logits (0, 0) and (ln 3, 0): the losses are ln 2 and -ln(3/4)."""
    hidden = torch.tensor([[[0.0], [1.0986123]]])
    loss = summed_cross_entropy(hidden, torch.tensor([[1.0], [0.0]]), torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(0.6931472 + 0.2876821, abs=1e-6)


def test_all_ignored_is_zero_and_never_nan() -> None:
    hidden, weight, labels = inputs()
    loss = summed_cross_entropy(hidden, weight, torch.full_like(labels, IGNORE))
    assert loss.item() == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(loss, (hidden, weight)))


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels = inputs()
    assert torch.isfinite(summed_cross_entropy(hidden * 1e4, weight, labels))


def test_autocast_computes_in_16_bits_and_keeps_fp32_gradients() -> None:
    hidden, weight, labels = inputs()
    exact = summed_cross_entropy(hidden, weight, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = summed_cross_entropy(hidden, weight, labels)
    assert loss.dtype == torch.float32
    assert loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(loss, (hidden, weight)))


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, labels = inputs()
    (grad,) = torch.autograd.grad(summed_cross_entropy(hidden.detach(), weight, labels), weight)
    assert grad.abs().sum() > 0
    with torch.no_grad():
        assert summed_cross_entropy(hidden, weight, labels).requires_grad is False


def small_model_and_batch() -> tuple[StableLM2, Batch]:
    config = ModelConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
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
    whole = accumulate_gradients(model, [batch], CPU, torch.float32)
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    cut = accumulate_gradients(model, batch.split(rows), CPU, torch.float32)
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
    torch.testing.assert_close(
        accumulate_gradients(model, [batch], CPU, torch.float32), expected.detach()
    )
