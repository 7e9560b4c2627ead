"""One step: its halves, what the loss is divided by, and the objective as a seam."""

import pytest
import torch
from torch import Tensor, nn

from slm2_minimal.config import ModelConfig, OptimizerConfig
from slm2_minimal.data.loader import Batch
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.objective import NextToken
from slm2_minimal.train.optimizer import build_optimizer
from slm2_minimal.train.step import accumulate_gradients, take_step, update
from slm2_minimal.train.trainer import Trainer
from tests.train.runs import Make, assert_bitwise, weights

CPU = torch.device("cpu")


class EvenPositions(NextToken):
    """Learns every second position only."""

    def weight(self, batch: Batch) -> int:
        return batch.labels[:, ::2].numel()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.input_ids)[:, ::2]
        labels = batch.labels[:, ::2]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def model_and_batch() -> tuple[StableLM2, Batch]:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, partial_rotary_factor=0.5,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    ids = torch.randint(0, 31, (4, 9))
    positions = torch.arange(8).expand(4, 8)
    batch = Batch(ids[:, :-1], ids[:, 1:], positions, torch.zeros_like(positions))
    return StableLM2(config), batch


def test_a_step_is_the_trainers_step(small_run: Make) -> None:
    """The whole of it, without guard and ranks, gives the same weights bit for bit."""
    config = small_run()
    trainer, by_hand = Trainer.from_config(config), Trainer.from_config(config)
    for step in range(3):
        values = trainer.step()
        batch = by_hand.loader.batch(step * 8, 8)
        loss, grad_norm = take_step(
            by_hand.model,
            by_hand.optimizer,
            batch.split(4),
            lr=values["lr"],
            clip_norm=config.optimizer.clip_norm,
        )
        assert (loss, grad_norm) == (values["loss"], values["grad_norm"])
    assert_bitwise(weights(trainer), weights(by_hand))


def test_an_objective_decides_the_loss_and_its_divisor() -> None:
    model, batch = model_and_batch()
    objective = EvenPositions()
    whole = accumulate_gradients(model, [batch], objective)
    gradient = model.lm_head.weight.grad.clone()  # type: ignore[union-attr]
    logits = model(batch.input_ids)[:, ::2].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, batch.labels[:, ::2].flatten())
    torch.testing.assert_close(whole, expected.detach())

    model.zero_grad()
    cut = accumulate_gradients(model, batch.split(1), objective)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, atol=1e-6, rtol=1e-4)


def test_a_trainer_takes_another_objective(small_run: Make) -> None:
    config = small_run(**{"train.micro_batch_size": 2})
    usual = Trainer.from_config(config)
    other = Trainer.from_config(config)
    other.objective = EvenPositions()
    first = other.step()["loss"]
    assert first != usual.step()["loss"]
    for _ in range(5):
        last = other.step()["loss"]
    assert last < first


def test_the_divisor_of_all_ranks_is_given() -> None:
    model, batch = model_and_batch()
    alone = accumulate_gradients(model, [batch])
    part = accumulate_gradients(model, [batch], divisor=2 * batch.valid_tokens)
    torch.testing.assert_close(part, alone / 2)


@pytest.mark.parametrize("keep", [True, False])
def test_an_update_clears_the_gradients(keep: bool) -> None:
    model, batch = model_and_batch()
    optimizer = build_optimizer(model, OptimizerConfig())
    accumulate_gradients(model, [batch])
    update(optimizer, 1e-3, keep_gradient_memory=keep)
    for parameter in model.parameters():
        assert (parameter.grad is not None) == keep
        assert not keep or not parameter.grad.any()  # type: ignore[union-attr]
