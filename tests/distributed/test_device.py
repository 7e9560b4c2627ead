"""Which device and format a run takes, and how fast this machine multiplies in it."""

from pathlib import Path

import pytest
import torch

from slm2_minimal.config import ConfigError
from slm2_minimal.distributed import device as device_module
from slm2_minimal.distributed.device import (
    matmul_flops,
    peak_flops,
    peak_memory,
    pick_device,
    pick_dtype,
    require_memory,
    total_memory,
)
from tests.complaints import config_error

CPU = torch.device("cpu")


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


def test_all_the_memory_that_a_container_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "CONTROL_GROUPS", ())
    machine = total_memory(CPU)
    assert 2**28 < machine < 2**50
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device_module, "CONTROL_GROUPS", (str(limit), str(tmp_path / "other")))
    for text in ("max\n", f"{2**62}\n"):
        limit.write_text(text)
        assert total_memory(CPU) == machine
    limit.write_text(f"{2**20}\n")
    swap = total_memory(CPU) - 2**20
    assert 0 <= swap < machine
    require_memory(2**20 + swap, CPU, "model = 'a'", "use another")
    message = config_error(lambda: require_memory(2**21 + swap, CPU, "model = 'a'", "use another"))
    assert message.startswith("model = 'a': needs 0.0 GB at least, and this machine's cpu has ")


def test_matmul_flops_is_plausible() -> None:
    assert 1e8 < matmul_flops(CPU, torch.float32, 128) < 1e15


def test_peak_memory_counts_bytes() -> None:
    before = peak_memory(torch.device("cpu"))
    grown = bytearray(before + 64 * 2**20)  # more than was ever held
    grown[::4096] = b"1" * len(grown[::4096])
    assert peak_memory(torch.device("cpu")) >= before + 64 * 2**20
    assert before > 50 * 2**20
