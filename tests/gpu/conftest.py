"""Every test here runs twice: on a GPU by `pytest -m gpu`, and in small on the CPU in
the usual run, so that what waits for a GPU works.
"""

import pytest
import torch
import torch.nn.attention.flex_attention as flex
from torch import nn

from slm2_minimal.model import attention, masks, transformer

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(
            not torch.cuda.is_available(), reason="needs a CUDA device, and torch built for it"
        ),
    ],
)


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
