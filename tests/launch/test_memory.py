"""The planner's bytes against those of real tensors: AdamW's state, the peak of a step,
the loss; and the FLOPs of checkpointing.
"""

from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from slm2_minimal.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from slm2_minimal.data.loader import Batch
from slm2_minimal.distributed.parallel import checkpoint_activations, parallelize
from slm2_minimal.distributed.world import World
from slm2_minimal.launch.memory import loss_bytes, memory, state_bytes
from slm2_minimal.model.loss import summed_cross_entropy
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients
from slm2_minimal.train.step import accumulate_gradients

CPU = torch.device("cpu")


def small(vocab: int, channels: int, layers: int, **changes: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=channels,
        intermediate_size=channels * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    ).replace(**changes)


def run_of(
    model: ModelConfig,
    rows: int,
    length: int,
    accumulation: int = 2,
    dtype: Any = "auto",
    checkpointing: Any = "none",
) -> RunConfig:
    train = TrainConfig(
        micro_batch_size=rows, global_batch_tokens=rows * length * accumulation, dtype=dtype
    )
    return RunConfig(
        model=model,
        data=DataConfig(seq_len=length),
        train=train,
        parallel=ParallelConfig(checkpointing=checkpointing),
    )


def test_what_full_checkpointing_costs_as_torch_counts() -> None:
    """The products of a small model's step with and without it. Torch does not count
    the CPU's attention.
    """
    config = small(64, 64, 3)
    counted = []
    for kind in ("none", "full"):
        model = StableLM2(config)
        for block in model.model.layers if kind == "full" else []:
            checkpoint_activations(block, kind)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(2, 32, dtype=torch.int64)).sum().backward()
        counted.append(counter.get_total_flops() / 64)
    repeated = (
        2 * 3 * (4 * 64**2 + 2 * 64 * config.intermediate_size)
    )  # q, k, v, o, gate and up, not down
    assert counted[1] - counted[0] == pytest.approx(repeated)


# Against real steps


@pytest.mark.parametrize(
    "model",
    [
        small(512, 64, 2),
        small(300, 32, 3, tie_word_embeddings=True),
        small(300, 64, 2, num_key_value_heads=2),
        small(300, 64, 2, norm_bias=False),
        small(300, 64, 2, final_norm_bias=False, use_qkv_bias=False),
    ],
    ids=["plain", "tied", "grouped", "no block bias", "no other bias"],
)
def test_states_equal_those_of_a_real_adamw(model: ModelConfig) -> None:
    network = StableLM2(model)
    optimizer = build_optimizer(network, OptimizerConfig())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weights = sum(p.nbytes for p in network.parameters())
    gradients = sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
    state = sum(
        tensor.nbytes for tensors in optimizer.state.values() for tensor in tensors.values()
    )
    assert (weights, gradients, state) == state_bytes(model, "single", 1)


def measured_peak(run: RunConfig, masked: bool) -> dict[str, int]:
    """Live tensor bytes of a step that is not the first, at the worst moment of its
    last micro-batch: all, and those that are states.
    """
    torch.manual_seed(0)
    replica = parallelize(run, World(CPU), getattr(torch, str(run.train.dtype)))
    network, optimizer = replica.model, build_optimizer(replica.model, OptimizerConfig())
    rows, length = run.train.micro_batch_size, run.data.seq_len

    def micro_batch() -> None:
        ids = torch.randint(run.model.vocab_size, (rows, length))
        documents = (torch.arange(length) >= length // 2).long() * masked
        batch = Batch(ids, ids, torch.arange(length).repeat(rows, 1), documents.repeat(rows, 1))
        accumulate_gradients(network, [batch], dtype=replica.autocast_dtype)

    def update() -> None:
        clip_gradients(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    micro_batch()
    update()
    if run.train.global_batch_tokens > rows * length:
        micro_batch()
    tracker = MemTracker()
    tracker.track_external(network, optimizer)
    with tracker:
        micro_batch()
        update()
    peak = {
        getattr(key, "value", key): value
        for key, value in tracker.get_tracker_snapshot("peak")[CPU].items()
    }
    return {"all": peak["Total"], "states": peak["Parameter"] + peak["Gradient"] + peak["Optstate"]}


# vocabulary, width, layers, rows, length, masked, checkpointing: each with two
# micro-batches
SHAPES = [
    (512, 64, 2, 2, 128, False, "none"),
    (512, 64, 4, 4, 128, True, "none"),
    (1024, 128, 6, 2, 256, False, "none"),
    (8192, 64, 2, 8, 96, False, "none"),  # two chunks of the loss
    (32768, 64, 1, 1, 64, False, "none"),  # hardly anything but the head
    (512, 128, 2, 1, 32, False, "none"),  # mostly states
    (1024, 128, 4, 2, 256, False, "selective"),
    (1024, 96, 3, 3, 200, True, "selective"),
    (1024, 128, 4, 2, 256, False, "full"),
    (512, 64, 6, 4, 128, True, "full"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_peak_memory_of_a_real_step_within_a_tenth(shape: tuple[Any, ...], dtype: str) -> None:
    """Both the whole and what is left without the states, which are exact."""
    *model, rows, length, masked, kind = shape
    run = run_of(small(*model), rows, length, dtype=dtype, checkpointing=kind)
    measured, predicted = (
        measured_peak(run, masked),
        memory(run, 1, "single", kind, dense_mask=masked),
    )
    assert predicted.weights + predicted.gradients + predicted.optimizer == measured["states"]
    assert predicted.total == pytest.approx(measured["all"], rel=0.1)
    assert predicted.activations + predicted.working == pytest.approx(
        measured["all"] - measured["states"], rel=0.1
    )


@pytest.mark.parametrize(
    "model",
    [small(512, 64, 3, num_key_value_heads=2), small(1024, 64, 2, tie_word_embeddings=True)],
    ids=["grouped", "tied"],
)
def test_peak_memory_of_other_architectures(model: ModelConfig) -> None:
    run = run_of(model, 2, 128, dtype="bfloat16")
    assert memory(run, 1, "single").total == pytest.approx(
        measured_peak(run, False)["all"], rel=0.1
    )


@pytest.mark.parametrize(
    ("rows", "length"), [(1, 32), (2, 256)], ids=["gradients weigh most", "activations weigh most"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_without_accumulation(rows: int, length: int, dtype: str) -> None:
    """No gradient is there during the forward pass, so the worst moment is another
    one.
    """
    run = run_of(small(512, 128, 3), rows, length, accumulation=1, dtype=dtype)
    predicted = memory(run, 1, "single")
    assert predicted.total == pytest.approx(measured_peak(run, False)["all"], rel=0.1)
    assert (predicted.gradients == 0) == (length == 256)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_memory_of_the_loss_with_weights_of_16_and_32_bits(weight_dtype: torch.dtype) -> None:
    model, tokens = small(2048, 128, 1), 256
    hidden = torch.randn(tokens, 128, dtype=weight_dtype, requires_grad=True)
    head = torch.nn.Linear(128, 2048, bias=False, dtype=weight_dtype)
    labels = torch.randint(2048, (tokens,))
    tracker = MemTracker()
    tracker.track_external(hidden, head.weight, labels)
    with tracker:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weight_dtype == torch.float32):
            loss = summed_cross_entropy(hidden, head, labels)
        loss.backward()
    outside = head.weight.nbytes + labels.nbytes  # the hidden states count as the loss's
    measured = tracker.get_tracker_snapshot("peak")[CPU]["Total"] - outside
    assert loss_bytes(model, tokens, head.weight.element_size()) == pytest.approx(measured, rel=0.1)
