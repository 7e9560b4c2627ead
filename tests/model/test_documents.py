"""Attention inside packed documents by blocks, a GPU's path, run here with its kernel
as separate operations, against the dense mask's.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as flex
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from slm2_minimal.config import ModelConfig
from slm2_minimal.model import attention, masks, transformer
from slm2_minimal.model.attention import Attention, attend, reference_attention
from slm2_minimal.model.block import Block
from slm2_minimal.model.masks import document_blocks, document_mask, packed_mask
from slm2_minimal.model.rope import rotary_angles
from slm2_minimal.model.transformer import StableLM2

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

SMALL = ModelConfig(
    vocab_size=101,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=0,
)
PACKED = [  # lengths of the documents of each row
    [[5, 1, 9, 3]],  # less than a block
    [[128, 128]],  # borders between blocks
    [[1, 3, 100, 1, 95], [200], [72, 128]],  # not a multiple of a block, rows that differ
    [[1] * 130],  # every token by itself
    [[300, 1, 83], [127, 2, 255]],
]
NAMES = ["one block", "aligned", "rows that differ", "single tokens", "three blocks"]
packed = pytest.mark.parametrize("lengths", PACKED, ids=NAMES)


@pytest.fixture
def blocks_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's path. FlexAttention refuses gradients on a CPU because the kernel
    compiled for it has none; its separate operations have.
    """
    torch.compiler.reset()
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    monkeypatch.setattr(transformer, "packed_mask", document_blocks)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids_of(lengths: list[list[int]]) -> Tensor:
    """Row [2, 1] becomes 0 0 1."""
    return torch.stack(
        [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    )


def positions_of(lengths: list[list[int]]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])


def randomised(module: torch.nn.Module) -> Any:
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.2 * randn(*parameter.shape, seed=number))
    return module


def distance(tensors: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference of a pair, relative to its reference's largest value; to a
    thousandth of the largest of all where it is 0.
    """
    floor = max(float(b.abs().max()) for b in reference) / 1000
    return max(
        float((a.double() - b.double()).abs().max()) / max(float(b.abs().max()), floor)
        for a, b in zip(tensors, reference, strict=True)
    )


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=300), st.integers(0, 2**32 - 1))
def test_blocks_say_what_the_dense_mask_says(ids: list[int], seed: int) -> None:
    """Also for ids that come back later in the row: the rule is the same, not only for
    documents laid end to end.
    """
    rows = torch.tensor([ids, sorted(ids)])
    dense, blocks, size = document_mask(rows), document_blocks(rows), len(ids)
    assert torch.equal(flex.create_mask(blocks.mask_mod, 2, 1, size, size, device="cpu"), dense)
    count = -(-size // 128)
    padded = torch.zeros(2, 1, 128 * count, 128 * count, dtype=torch.bool)
    padded[:, :, :size, :size] = dense
    visited = padded.view(2, 1, count, 128, count, 128).any(dim=5).any(dim=3)
    assert torch.equal(blocks.to_dense().bool(), visited)


def test_blocks_of_other_documents_are_left_out() -> None:
    """Visited are a diagonal block a document, not the causal half."""

    def visited(lengths: list[int]) -> list[int]:
        blocks = document_blocks(ids_of([lengths]))
        assert blocks.full_kv_num_blocks is not None
        return (blocks.kv_num_blocks + blocks.full_kv_num_blocks).flatten().tolist()

    assert visited([128] * 4) == [1, 1, 1, 1]
    assert visited([512]) == [1, 2, 3, 4]
    assert visited([256, 256]) == [1, 2, 1, 2]
    assert visited([200, 312]) == [1, 2, 2, 3]


@packed
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.usefixtures("blocks_on_cpu")
def test_outputs_and_gradients_equal_the_reference(lengths: list[list[int]], heads: int) -> None:
    ids = ids_of(lengths)
    q, k, v = (
        randn(len(ids), n, ids.shape[1], 16, seed=seed).requires_grad_()
        for seed, n in enumerate((4, heads, heads))
    )
    out = attend(q, k, v, document_blocks(ids))
    whole = [tensor.repeat_interleave(4 // heads, dim=1) for tensor in (k, v)]
    expected = reference_attention(q, *whole, document_mask(ids))
    direction = randn(*out.shape, seed=5)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    gradients, references = (torch.autograd.grad(y, (q, k, v), direction) for y in (out, expected))
    torch.testing.assert_close(gradients, references, atol=5e-6, rtol=1e-4)


@packed
@pytest.mark.usefixtures("blocks_on_cpu")
def test_packed_documents_equal_documents_alone(lengths: list[list[int]]) -> None:
    """Logits, and the gradient of every parameter."""
    model: StableLM2 = randomised(StableLM2(SMALL))
    ids = torch.randint(0, 101, ids_of(lengths).shape, generator=torch.Generator().manual_seed(0))
    logits = model(ids, positions_of(lengths), ids_of(lengths))
    parts = [
        document[None]
        for row, sizes in zip(ids, lengths, strict=True)
        for document in row.split(sizes)
    ]
    alone = torch.cat([model(part)[0] for part in parts])
    torch.testing.assert_close(logits.flatten(0, 1), alone, atol=1e-5, rtol=1e-4)
    direction = randn(*alone.shape)
    gradients, references = (
        torch.autograd.grad(y, list(model.parameters()), direction)
        for y in (logits.flatten(0, 1), alone)
    )
    assert distance(list(gradients), list(references)) < 1e-4


def test_a_gpu_gets_blocks_and_a_cpu_the_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of([[3, 2]])
    mask = packed_mask(ids)
    assert isinstance(mask, Tensor)
    assert torch.equal(mask, document_mask(ids))
    monkeypatch.setattr(masks, "document_blocks", lambda ids: f"blocks of {ids.name}")
    assert packed_mask(SimpleNamespace(is_cuda=True, name="ids")) == "blocks of ids"  # type: ignore[arg-type]


Run = Callable[..., Tensor]


def gradients_of(
    run: Run, block: Block, x: Tensor, mask: Any, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Output and all gradients of a block under autocast to `dtype`, or without."""
    angles = rotary_angles(torch.arange(x.shape[1]), SMALL.rotary_dim, SMALL.rope_theta)
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        out = run(x, (angles.cos(), angles.sin()), mask)
    out.float().square().sum().backward()
    parameters = list(block.parameters())
    gradients = [out.detach(), x.grad, *(p.grad for p in parameters)]
    block.zero_grad()
    return gradients  # type: ignore[return-value]


def keep_products_and_attention(
    context: object, op: object, *args: object, **kwargs: object
) -> CheckpointPolicy:
    kept = (
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.higher_order.flex_attention,
    )
    return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE


KINDS: dict[str, Callable[[Block], None]] = {
    "plain": lambda block: None,
    "full": lambda block: setattr(
        block, "forward", partial(checkpoint, block.forward, use_reentrant=False)
    ),
    "selective": lambda block: setattr(
        block,
        "forward",
        partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            context_fn=partial(create_selective_checkpoint_contexts, keep_products_and_attention),
        ),
    ),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("blocks_on_cpu")
def test_checkpointed_and_compiled_blocks(kind: str, compiled: bool) -> None:
    """The same gradients; and a block that was compiled for one packing is not compiled
    again for the next.
    """
    block = randomised(Block(SMALL, 0))
    x, batches = (
        randn(2, 200, 64, seed=9),
        [[[1, 3, 100, 1, 95], [200]], [[50, 150], [199, 1]], [[1] * 200, [2] * 100]],
    )
    references = [
        gradients_of(block, block, x, document_mask(ids_of(lengths))) for lengths in batches
    ]
    KINDS[kind](block)
    if compiled:
        block.compile(backend="aot_eager")
    for number, lengths in enumerate(batches):
        with torch.compiler.set_stance("fail_on_recompile" if compiled and number else "default"):
            got = gradients_of(block, block, x, document_blocks(ids_of(lengths)))
        assert distance(got, references[number]) < 1e-5


@pytest.mark.usefixtures("blocks_on_cpu")
def test_selective_checkpointing_sees_attention_as_one_operation() -> None:
    """It is what train.parallel has to list among the operations whose outputs are
    kept.
    """
    seen: list[Any] = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if not context.is_recompute:
            seen.append(op)
        return keep_products_and_attention(context, op)

    block = randomised(Block(SMALL, 0))
    run = partial(
        checkpoint,
        block,
        use_reentrant=False,
        context_fn=partial(create_selective_checkpoint_contexts, policy),
    )
    gradients_of(run, block, randn(1, 64, 64), document_blocks(ids_of([[40, 24]])))
    assert seen.count(torch.ops.higher_order.flex_attention) == 1


@pytest.mark.parametrize(
    "weights", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 weights"]
)
@pytest.mark.usefixtures("blocks_on_cpu")
def test_bf16_errs_no_more_than_with_the_dense_mask(weights: torch.dtype) -> None:
    """Both against fp32. Sums are rounded in another order, hence the half on top."""
    exact, lengths = randomised(Block(SMALL, 0)), [[1, 3, 100, 1, 95], [200]]
    x, ids = randn(2, 200, 64, seed=9), ids_of(lengths)
    reference = gradients_of(exact, exact, x, document_mask(ids))
    block, dtype = (
        randomised(Block(SMALL, 0)).to(weights),
        (torch.bfloat16 if weights == torch.float32 else None),
    )
    errors = [
        distance(gradients_of(block, block, x.to(weights), mask, dtype), reference)
        for mask in (document_blocks(ids), document_mask(ids))
    ]
    assert errors[1] > 1e-3, "this was to be bf16"
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.usefixtures("blocks_on_cpu")
def test_heads_shared_among_ranks() -> None:
    """Tensor parallelism by hand: each of two ranks has half of the heads, and their
    outputs add up.
    """
    whole: Attention = randomised(Attention(SMALL, 0))
    x, mask = randn(2, 200, 64), document_blocks(ids_of([[150, 50], [1, 199]]))
    angles = rotary_angles(torch.arange(200), SMALL.rotary_dim, SMALL.rope_theta)
    rotation = (angles.cos(), angles.sin())
    parts = []
    for rank in range(2):
        part = Attention(SMALL, 0)
        for name in ("q_proj", "k_proj", "v_proj"):
            theirs, ours = getattr(whole, name), getattr(part, name)
            ours.weight, ours.bias = (
                torch.nn.Parameter(tensor.chunk(2)[rank]) for tensor in (theirs.weight, theirs.bias)
            )
        part.o_proj.weight = torch.nn.Parameter(whole.o_proj.weight.chunk(2, dim=1)[rank])
        parts.append(part(x, rotation, mask))
    torch.testing.assert_close(parts[0] + parts[1], whole(x, rotation, mask), atol=1e-5, rtol=1e-4)


class Operations(TorchDispatchMode):
    """The names of all operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func).split(".")[1])
        return func(*args, **(kwargs or {}))


def test_nothing_in_the_mask_waits_for_a_value() -> None:
    """What reads a value back, or makes a shape of values, would have the host wait for
    all that a GPU has still to do.
    """
    with Operations() as operations:
        document_blocks(ids_of([[150, 50], [1, 199]]))
    assert "eq" in operations.names, "operations are seen"
    assert not operations.names & {
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "unique_consecutive",
        "_unique2",
        "equal",
    }
