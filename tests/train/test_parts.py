"""The smaller parts of training: optimizer groups, clipping, FLOPs, device and format,
validation, doctor.
"""

import math

import numpy as np
import pytest
import torch

from slm2_minimal.config import ConfigError, DataConfig, ModelConfig, OptimizerConfig
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.training_data import assemble
from slm2_minimal.distributed import device as device_module
from slm2_minimal.distributed.device import matmul_flops, peak_flops, pick_device, pick_dtype
from slm2_minimal.evaluate import validation
from slm2_minimal.evaluate.validation import ValidationSet, unigram, validation_losses
from slm2_minimal.launch.doctor import report
from slm2_minimal.model.flops import flops_per_token
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from slm2_minimal.train.log import progress_line
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients, set_rate

CPU = torch.device("cpu")
SMALL = ModelConfig(
    vocab_size=7, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
)  # fmt: skip


def test_decay_falls_on_matrices_only() -> None:
    model = StableLM2(SMALL)
    decayed, free = build_optimizer(model, OptimizerConfig()).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert all("norm" not in names[p] for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.95)
    assert decayed["eps"] == 1e-8


def test_one_adamw_step_by_hand() -> None:
    """First step of AdamW: decay by rate x 0.1, then move by rate x g / (|g| + eps),
    whatever the gradient's size.
    """
    model = StableLM2(SMALL)
    optimizer = build_optimizer(model, OptimizerConfig())
    weight, bias = (
        model.model.layers[0].self_attn.q_proj.weight,
        model.model.layers[0].self_attn.q_proj.bias,
    )
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -0.5)
    set_rate(optimizer, 0.01)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.01 * 0.1) + 0.01)
    torch.testing.assert_close(bias.detach(), torch.full_like(bias, 0.01))


def test_clipping_uses_the_global_norm() -> None:
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], 1.0).item() == pytest.approx(5.0)
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8), rel=1e-5)
    assert clip_gradients([a, b], 2.0).item() == pytest.approx(1.0, rel=1e-5)
    assert a.grad.item() == pytest.approx(0.6, rel=1e-5)  # below the limit nothing changes


def test_flops_of_the_full_model() -> None:
    flops = flops_per_token(ModelConfig.preset("stablelm-2-1_6b"), 4096)
    assert flops == 6 * (1_644_515_328 - 205_520_896) + 12 * 24 * 2048 * 4096
    assert flops == pytest.approx(1.105e10, rel=1e-3)
    assert flops * 8_388_608 / 512 / 170e12 == pytest.approx(
        1.065, abs=5e-4
    )  # seconds a step at the reported speed


def test_flops_against_torchs_counter() -> None:
    """torch counts the products that really run: attention's causal half included, as
    in our formula.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config = SMALL.replace(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, max_position_embeddings=32
    )
    model, ids = StableLM2(config), torch.zeros(3, 32, dtype=torch.int64)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(ids).sum().backward()
    assert counter.get_total_flops() / (3 * 32) == pytest.approx(
        flops_per_token(config, 32), rel=0.03
    )


def test_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"train\.device = 'cuda'"):
        pick_device("cuda")
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    rates = {torch.float32: 100.0, torch.bfloat16: 700.0}
    monkeypatch.setattr(device_module, "matmul_flops", lambda device, dtype: rates[dtype])
    assert pick_dtype("auto", CPU) == torch.bfloat16
    rates[torch.bfloat16] = 60.0
    assert pick_dtype("auto", CPU) == torch.float32
    assert peak_flops(CPU, torch.float32) == 100.0


def test_matmul_flops_is_plausible() -> None:
    assert 1e8 < matmul_flops(CPU, torch.float32, 128) < 1e15


def test_unigram_and_validation_by_hand() -> None:
    counts = np.asarray([1, 2, 1, 0, 0, 0, 0])  # one is added to each
    torch.testing.assert_close(
        unigram(counts), torch.tensor([2, 3, 2, 1, 1, 1, 1], dtype=torch.float64).div(11).log()
    )
    held_out = ValidationSet.build(
        TokenStream.from_documents([[1, 3]], eos=0), counts, seq_len=4, rows=2
    )
    assert held_out.unigram_loss == pytest.approx(
        -(math.log(1 / 11) + math.log(2 / 11)) / 2
    )  # the targets are 3 and the end
    model = StableLM2(SMALL)
    logits = model(torch.tensor([[1, 3]])).log_softmax(-1)
    expected = -(logits[0, 0, 3] + logits[0, 1, 0]).item() / 2
    assert validation_losses(model, {"x": held_out}, CPU)["x"] == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_depend_on_the_batch() -> None:
    documents = [np.random.default_rng(i).integers(1, 7, size=5 + 7 * i).tolist() for i in range(5)]
    stream, model = TokenStream.from_documents(documents, eos=0), StableLM2(SMALL)
    one, many = (
        ValidationSet.build(stream, np.ones(7, dtype=np.int64), seq_len=8, rows=rows)
        for rows in (1, 4)
    )
    a, b = (validation_losses(model, {"x": held_out}, CPU)["x"] for held_out in (one, many))
    assert a == pytest.approx(b, rel=1e-6)


def test_a_long_held_out_text_is_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences 0, 2 and 5 of eight, from the whole length; both losses are of their
    targets and of no other.
    """
    monkeypatch.setattr(validation, "MAX_SEQUENCES", 3)
    tokens = np.random.default_rng(0).integers(1, 7, size=31)
    stream, model, counts = (
        TokenStream.from_documents([tokens], eos=0),
        StableLM2(SMALL),
        np.arange(7),
    )
    held_out = ValidationSet.build(stream, counts, seq_len=4, rows=2)
    assert [len(batch.input_ids) for batch in held_out.batches()] == [2, 1]
    read = np.append(tokens, 0)
    rows = torch.from_numpy(np.stack([read[4 * i : 4 * i + 4] for i in (0, 2, 5)]))
    targets = torch.from_numpy(np.stack([read[4 * i + 1 : 4 * i + 5] for i in (0, 2, 5)]))
    assert held_out.unigram_loss == pytest.approx(-((targets + 1) / 28).log().mean().item())
    expected = -model(rows).log_softmax(-1).gather(-1, targets[..., None]).mean().item()
    assert validation_losses(model, {"x": held_out}, CPU)["x"] == pytest.approx(expected, rel=1e-5)


def test_the_tiny_presets_held_out_text_is_read_whole(tiny: SentencePieceTokenizer) -> None:
    data = DataConfig.preset("tiny")
    for stream in assemble(data, tiny).held_out.values():
        held_out = ValidationSet.build(stream, np.ones(1024, dtype=np.int64), data.seq_len, rows=16)
        ids = torch.cat([batch.input_ids.flatten() for batch in held_out.batches()])
        assert ids[: len(stream.tokens)].tolist() == stream.tokens.tolist()


def test_progress_line() -> None:
    values = {
        "loss": 4.1234,
        "rate": 2.5e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 5210.4,
        "share_of_peak": 0.345,
    }
    line = progress_line(20, 600, values, seconds_left=125)
    assert (
        line
        == "step  20/600 | loss 4.123 | rate 2.50e-03 | grad norm 0.50 | 5,210 tokens/s | 34% of"
        " peak | 2:05 left"
    )


def test_doctor_says_what_is_here() -> None:
    text = "\n".join(report())
    for part in (
        "torch " + torch.__version__,
        "matrix product float32",
        "memory copy",
        "extra hf",
        "arcade100k",
        "GiB free",
    ):
        assert part in text
