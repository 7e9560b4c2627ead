"""Every test here runs twice: on a GPU by `pytest -m gpu`, and in small on the CPU in
the usual run, so that what waits for a GPU works. What the tests share is small: a
model, batches, a run of updates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as flex
from torch import Tensor, nn

from slm2_minimal.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.distributed.parallel import parallelize
from slm2_minimal.distributed.world import World
from slm2_minimal.model import attention, masks, transformer
from slm2_minimal.model.masks import document_mask
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients, set_lr
from slm2_minimal.train.step import accumulate_gradients

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(
            not torch.cuda.is_available(), reason="needs a CUDA device, and torch built for it"
        ),
    ],
)

CPU = torch.device("cpu")
SMALL = ModelConfig(
    vocab_size=503,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    bos_token_id=0,
    eos_token_id=0,
)


def batches(
    count: int, rows: int = 2, length: int = 200, *, packed: bool = True, vocabulary: int = 503
) -> list[Batch]:
    """Micro-batches of random tokens: documents of 1 to 160 tokens end to end, or a
    document a row.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [length - 1] * count * rows
    if packed:
        tokens = count * rows * length
        lengths = torch.randint(1, 160, (tokens // 40,), generator=generator).tolist()
    documents = [torch.randint(1, vocabulary, (n,), generator=generator).numpy() for n in lengths]
    stream = TokenStream.from_documents(documents, eos=0)
    return [
        Batch.stack([stream.sequence(rows * i + row, length) for row in range(rows)])
        for i in range(count)
    ]


def run_of(
    model: ModelConfig,
    checkpointing: Any = "none",
    compiled: bool = False,
    rows: int = 2,
    length: int = 200,
) -> RunConfig:
    """One micro-batch a step, in bf16."""
    return RunConfig(
        model=model,
        data=DataConfig(seq_len=length),
        parallel=ParallelConfig(checkpointing=checkpointing, compile=compiled),
        train=TrainConfig(
            micro_batch_size=rows, global_batch_tokens=rows * length, dtype="bfloat16"
        ),
    )


def build(device: torch.device, config: RunConfig | None = None) -> StableLM2:
    """The same random weights on every device."""
    return parallelize(config or run_of(SMALL), World(device), torch.float32).model


def gradients_of(
    model: StableLM2,
    micro_batches: list[Batch],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """The loss and all gradients, on the CPU."""
    loss = accumulate_gradients(model, micro_batches, dtype=dtype)
    gradients = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    model.zero_grad()
    return [gradient.cpu() for gradient in gradients]


def train(
    model: StableLM2,
    micro_batches: list[Batch],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[float]:
    """The loss before each update, one update a micro-batch."""
    optimizer = build_optimizer(model, OptimizerConfig())
    set_lr(optimizer, 1e-3)
    losses = []
    for micro_batch in micro_batches:
        losses.append(float(accumulate_gradients(model, [micro_batch], dtype=dtype)))
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def distance(tensors: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference of a pair, relative to its reference's largest value; to a
    thousandth of the largest of all where it is 0.
    """
    floor = max(float(b.abs().max()) for b in reference) / 1000
    return max(
        float((a.double() - b.double()).abs().max()) / max(float(b.abs().max()), floor)
        for a, b in zip(tensors, reference, strict=True)
    )


def rounding(tensors: list[Tensor], reference: list[Tensor]) -> float:
    """The largest norm of a pair's difference, relative to its reference's norm."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(tensors, reference, strict=True)
    )


@contextmanager
def dense_mask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU's path, also on a GPU."""
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "packed_mask", document_mask)
        yield


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """On the CPU, attention in documents takes a GPU's path, its kernel as separate
    operations, and compilation stops at the graph.
    """
    torch.compiler.reset()
    if request.param == "cpu":
        compile_module = nn.Module.compile
        monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
        monkeypatch.setattr(attention, "_compiled", lambda function: function)
        monkeypatch.setattr(transformer, "packed_mask", masks.document_blocks)
        monkeypatch.setattr(
            nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager")
        )
    return torch.device(request.param)
