"""What only a GPU can show of attention: its kernels and what they hold, against the
same work on the CPU or in fp32.
"""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from slm2_minimal.model.attention import attend, reference_attention
from slm2_minimal.model.loss import summed_cross_entropy
from slm2_minimal.model.masks import document_blocks, document_mask, packed_mask
from tests.gpu.conftest import CPU, batches, build, gradients_of, rounding

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.mark.parametrize("heads", [4, 2], ids=["all heads", "grouped"])
def test_block_kernel_in_bf16_errs_no_more_than_the_dense_mask(
    device: torch.device, heads: int
) -> None:
    """Against fp32, output and gradients; batches of several shapes one after the
    other, as training and validation give them.
    """
    for rows, length in (
        [(2, 256), (2, 200), (3, 200), (1, 77)]
        if device == CPU
        else [(2, 1024), (2, 1000), (3, 1000), (16, 512), (1, 77)]
    ):
        ids = batches(1, rows, length)[0].document_ids.to(device)
        generator = torch.Generator().manual_seed(length)
        exact = [
            torch.randn(rows, n, length, 64, generator=generator).to(device, torch.bfloat16).float()
            for n in (4, heads, heads)
        ]
        direction = torch.randn(rows, 4, length, 64, generator=generator).to(device, torch.bfloat16)

        def results(
            dtype: torch.dtype,
            mask: Any,
            exact: list[Tensor] = exact,
            direction: Tensor = direction,
        ) -> list[Tensor]:
            q, k, v = (tensor.to(dtype).requires_grad_() for tensor in exact)
            if dtype == torch.float32:
                out = reference_attention(
                    q,
                    *(tensor.repeat_interleave(4 // k.shape[1], dim=1) for tensor in (k, v)),
                    mask,
                )
            else:
                out = attend(q, k, v, mask)
            return [out.detach(), *torch.autograd.grad(out, (q, k, v), direction.to(dtype))]

        reference = results(torch.float32, document_mask(ids))
        dense, blocks = (
            rounding(results(torch.bfloat16, mask), reference)
            for mask in (document_mask(ids), document_blocks(ids))
        )
        assert 1e-3 < dense < 1e-2, "bf16 has 8 significant bits"
        assert blocks < 1.5 * dense, f"{rows} x {length}"


def test_the_device_decides_how_documents_are_masked(device: torch.device) -> None:
    mask = packed_mask(batches(1)[0].document_ids.to(device))
    assert isinstance(mask, Tensor) == (device == CPU)


def test_whole_rows_use_a_flash_kernel(device: torch.device) -> None:
    """Named by the profiler in a training step, without being asked for; with a dense
    mask a GPU has none.
    """
    model = build(device)
    micro_batches = batches(1, length=256, packed=False)
    gradients_of(model, micro_batches, device, torch.bfloat16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        gradients_of(model, micro_batches, device, torch.bfloat16)
    names = {event.key for event in profile.key_averages()}
    assert any(
        re.match(r"aten::_scaled_dot_product_(flash|cudnn)_attention", name) for name in names
    ), sorted(names)
    q = torch.randn(1, 2, 64, 64, device=device, dtype=torch.bfloat16)
    mask = document_mask(torch.zeros(1, 64, dtype=torch.int64, device=device))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attend(q, q, q, None)
        if device != CPU:
            with pytest.raises(RuntimeError, match="No available kernel"):
                attend(q, q, q, mask)


def test_packed_rows_use_one_compiled_kernel(device: torch.device) -> None:
    """On a GPU its name in the profile, and no memory for scores: (B, H, T, T) alone
    would be more than everything the step may take.
    """
    rows, length = (2, 4096) if device != CPU else (1, 256)
    ids = batches(1, rows, length)[0].document_ids.to(device)
    q = torch.randn(rows, 16, length, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    attend(q, q, q, document_blocks(ids)).sum().backward()
    if device == CPU:
        return
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        attend(q, q, q, document_blocks(ids)).sum().backward()
        torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < rows * 16 * length * length * 2
    assert any("flex_attention" in event.key for event in profile.key_averages())


def test_the_host_never_waits_inside_a_forward_pass(device: torch.device) -> None:
    """Neither for the mask of the documents nor for the loss. The first pass may: it
    compiles.
    """
    model, batch = build(device), batches(1)[0].to(device)
    loss = partial(summed_cross_entropy, labels=batch.labels)

    def forward() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            model(batch.input_ids, batch.position_ids, batch.document_ids, head=loss)

    forward()
    if device != CPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        forward()
    finally:
        if device != CPU:
            torch.cuda.set_sync_debug_mode("default")
