"""Rotary embedding, attention, packing, the cache and initialisation, each against
something worked out in another way; and what a changed architecture runs into.
"""

import math
import re
from pathlib import Path

import pytest
import torch

from slm2_minimal.config import CheckpointError, DataError, ModelConfig
from slm2_minimal.model import block
from slm2_minimal.model.attention import Attention, reference_attention
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.masks import document_mask
from slm2_minimal.model.rope import apply_rotary, rotary_angles
from slm2_minimal.model.transformer import StableLM2

SMALL = ModelConfig(
    vocab_size=101,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=0,
)


@pytest.fixture
def model() -> StableLM2:
    model = StableLM2(SMALL)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_angles_by_hand() -> None:
    angles = rotary_angles(torch.tensor([0, 1, 4095]), rotary_dim=4, theta=10_000.0)
    torch.testing.assert_close(angles, torch.tensor([[0.0, 0.0], [1.0, 0.01], [4095.0, 40.95]]))


def test_rotary_by_complex_numbers() -> None:
    """Half-split: dimension i and i + R/2 are the real and imaginary part of one
    number, multiplied by exp(i angle).
    """
    x, angles = randn(2, 3, 5, 16), rotary_angles(torch.arange(5), rotary_dim=8, theta=10_000.0)
    z = torch.complex(x[..., :4], x[..., 4:8]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([z.real, z.imag, x[..., 8:]], dim=-1)
    torch.testing.assert_close(apply_rotary(x, angles), expected)


def test_rotary_depends_on_distance_alone_and_keeps_length() -> None:
    q, k = randn(1, 1, 1, 16, seed=1), randn(1, 1, 1, 16, seed=2)
    turn = lambda x, position: apply_rotary(x, rotary_angles(torch.tensor([position]), 8, 10_000.0))  # noqa: E731
    products = [(turn(q, 7 + shift) * turn(k, 3 + shift)).sum() for shift in (0, 1, 50)]
    torch.testing.assert_close(products[1:], [products[0]] * 2, atol=1e-4, rtol=1e-4)
    assert not torch.isclose((turn(q, 7) * turn(k, 4)).sum(), products[0], atol=1e-3)
    torch.testing.assert_close(turn(q, 9).norm(), q.norm())


def test_per_row_angles() -> None:
    positions = torch.tensor([[0, 1, 2], [5, 0, 1]])
    x = randn(2, 3, 3, 16)
    both = apply_rotary(x, rotary_angles(positions, 8, 100.0))
    for row in range(2):
        torch.testing.assert_close(
            both[row : row + 1],
            apply_rotary(x[row : row + 1], rotary_angles(positions[row], 8, 100.0)),
        )


def test_sdpa_equals_the_reference(model: StableLM2) -> None:
    q, k, v = (randn(2, 4, 9, 16, seed=s) for s in range(3))
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9])
    mask = document_mask(ids)
    fast = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(fast, reference_attention(q, k, v, mask), atol=1e-6, rtol=1e-5)
    # the weights of one query, by hand: a softmax over the two tokens of its document
    # before it and itself
    scores = [float(q[0, 0, 5] @ k[0, 0, s]) / 4 for s in (3, 4, 5)]
    total = sum(math.exp(s) for s in scores)
    by_hand = sum(math.exp(s) / total * v[0, 0, i] for s, i in zip(scores, (3, 4, 5), strict=True))
    torch.testing.assert_close(fast[0, 0, 5], by_hand, atol=1e-5, rtol=1e-4)


def test_document_mask_by_hand() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1]]))
    assert mask.tolist() == [[[[True, False, False], [True, True, False], [False, False, True]]]]


def test_packed_documents_equal_documents_alone(model: StableLM2) -> None:
    lengths = (5, 1, 9, 3)
    documents = [
        torch.randint(0, 101, (1, n), generator=torch.Generator().manual_seed(n)) for n in lengths
    ]
    packed = torch.cat(documents, dim=1)
    document_ids = torch.cat([torch.full((1, n), i) for i, n in enumerate(lengths)], dim=1)
    position_ids = torch.cat([torch.arange(n)[None] for n in lengths], dim=1)
    logits = model(packed, position_ids, document_ids)
    alone = torch.cat([model(document) for document in documents], dim=1)
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)
    without_mask = model(packed, position_ids)
    assert not torch.allclose(without_mask[:, 5:], alone[:, 5:], atol=1e-2)


def test_causal(model: StableLM2) -> None:
    ids = torch.randint(0, 101, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 101
    a, b = model(ids), model(changed)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])


def token_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 101, (rows, length), generator=torch.Generator().manual_seed(0))


def new_cache(length: int = 20, dtype: torch.dtype = torch.float32) -> KeyValueCache:
    return KeyValueCache.allocate(SMALL, 2, length, torch.device("cpu"), dtype)


@torch.no_grad()
def test_cache_equals_no_cache(model: StableLM2) -> None:
    ids, cache = token_ids(2, 20), new_cache()
    pieces = [model(part, cache=cache) for part in ids.split([6, 1, 5, 1, 7], dim=1)]
    assert cache.length == 20
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_truncated_cache_goes_on_as_a_fresh_one(model: StableLM2) -> None:
    ids = token_ids(2, 20)
    cache, fresh = new_cache(), new_cache()
    model(ids, cache=cache)
    cache.truncate(7)
    assert cache.length == 7
    model(ids[:, :7], cache=fresh)
    other = ids[:, 7:12].flip(1)
    torch.testing.assert_close(model(other, cache=cache), model(other, cache=fresh))
    cache.truncate(0)
    torch.testing.assert_close(model(ids, cache=cache), model(ids))
    with pytest.raises(AssertionError, match="cannot keep 21 of 20"):
        cache.truncate(21)


@torch.no_grad()
def test_a_cache_is_written_in_place() -> None:
    """What comes back are views of memory that stays where it is."""
    cache = new_cache()
    addresses = [layer.data_ptr() for layer in cache.layers]
    keys, values = randn(2, 2, 20, 16, seed=1), randn(2, 2, 20, 16, seed=2)
    for start, end in ((0, 6), (6, 7), (7, 20)):
        for layer in range(3):
            new = (keys[:, :, start:end], values[:, :, start:end])
            all_keys, all_values = cache.append(layer, *new)
            assert all_keys.data_ptr() == cache.layers[layer].data_ptr()
            assert torch.equal(all_keys, keys[:, :, :end])
            assert torch.equal(all_values, values[:, :, :end])
        assert cache.length == end
    assert [layer.data_ptr() for layer in cache.layers] == addresses


@torch.no_grad()
def test_a_full_cache_says_so(model: StableLM2) -> None:
    cache = new_cache(length=6)
    model(token_ids(2, 5), cache=cache)
    with pytest.raises(DataError, match="cache = 6 tokens: full, 7 are needed"):
        model(token_ids(2, 2), cache=cache)
    assert cache.length == 5, "it is as it was"
    with pytest.raises(AssertionError, match="another batch size"):
        model(token_ids(1, 1), cache=cache)


@torch.no_grad()
def test_a_cache_serves_another_dtype_and_a_part_of_the_heads() -> None:
    """As under autocast, and as one rank of tensor parallelism has them."""
    cache = new_cache()
    part = randn(2, 1, 4, 16).bfloat16()
    keys, values = cache.append(0, part, part)
    assert keys.dtype == torch.bfloat16
    assert torch.equal(keys, part)
    assert torch.equal(values, part)


def test_bytes_of_a_cache() -> None:
    cache = KeyValueCache.allocate(
        ModelConfig.preset("stablelm-2-1_6b"), 1, 10, torch.device("meta"), torch.bfloat16
    )
    assert sum(layer.nbytes for layer in cache.layers) == 10 * 196_608
    grouped = KeyValueCache.allocate(SMALL, 2, 10, torch.device("meta"), torch.float32)
    assert sum(layer.nbytes for layer in grouped.layers) == 2 * 3 * 2 * 16 * 4 * 2 * 10


def test_the_head_is_passed_as_a_module(model: StableLM2) -> None:
    ids = token_ids(2, 5)
    hidden, head = model(ids, head=lambda hidden, head: (hidden, head))
    assert head is model.lm_head
    assert torch.equal(head(hidden), model(ids))


class NormedAttention(Attention):
    """With a norm of queries, which the config knows nothing of."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_layernorm = torch.nn.LayerNorm(config.head_dim)


def test_a_changed_architecture_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When it is built, for its count; when it is saved, for the name of its tensor."""
    monkeypatch.setattr(block, "Attention", NormedAttention)
    counted = SMALL.num_parameters()
    built = counted + 3 * 2 * 16
    message = f"StableLM2 has {built:,} parameters, ModelConfig.num_parameters() counts {counted:,}"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        StableLM2(SMALL)
    monkeypatch.setattr(ModelConfig, "num_parameters", lambda config: built)
    model = StableLM2(SMALL)
    name = "model.layers.0.self_attn.q_layernorm.weight"
    with pytest.raises(CheckpointError, match=re.escape(f"{name}: no tensor of Hugging Face's")):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_initial_weights() -> None:
    config = ModelConfig.preset("tiny")
    model = StableLM2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    base = config.initializer_range
    residual = base / math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else base
            n = parameter.numel()
            assert abs(parameter.std().item() / std - 1) < 5 / math.sqrt(2 * n), (
                name
            )  # 5 sigma of a standard deviation's estimate
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(n), name
    again = StableLM2(config)
    again.init_weights(torch.Generator().manual_seed(0))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_longer_than_the_context(model: StableLM2) -> None:
    with pytest.raises(DataError, match="65 tokens: longer than the context"):
        model(torch.zeros(1, 65, dtype=torch.int64))
