"""AdamW with weight decay on matrices only (report section 3.2), and gradient clipping
by the global norm, on any mesh.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from slm2_minimal.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Parameters of two or more dimensions decay, biases and norm weights do not. The
    rate is set before every step.

    Fused kernels take tensors of one mesh at a time, so parameters on different meshes
    are in different groups.
    """
    groups: dict[Any, dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.dim() >= 2 else 0.0
            groups.setdefault((decay, _mesh(parameter)), {"params": [], "weight_decay": decay})[
                "params"
            ].append(parameter)
    return torch.optim.AdamW(
        list(groups.values()),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the schedule's rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their global norm is at most
    `max_norm`; return the norm they had.

    Sharded gradients are on one mesh or on several (with tensor parallelism, norms and
    embeddings are on another than the blocks' matrices): the squares of each kind are
    summed over the ranks that share it, and no replica counts twice. Every rank must
    call this.
    """
    kinds: dict[Any, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            kinds[gradient.device_mesh, gradient.placements].append(gradient.to_local())
        elif gradient is not None:
            kinds[None, ()].append(gradient)
    norms = []
    for (mesh, placements), gradients in kinds.items():
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        shared = [
            dim for dim, placement in enumerate(placements) if not isinstance(placement, Replicate)
        ]
        if shared:
            norm = norm.square()
            for dim in shared:
                dist.all_reduce(norm, group=mesh.get_group(dim))
            norm = norm.sqrt()
        norms.append(norm)
    total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if any(mesh is not None and mesh.ndim > 1 for mesh, _ in kinds):
        dist.all_reduce(
            total
            # groups that reduced apart may differ in the last bit: all go on with the mean,
            # or with NaN
        )
        total /= dist.get_world_size()
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradients in kinds.values():
        torch._foreach_mul_(gradients, factor)
    return total


def _mesh(parameter: nn.Parameter) -> Any:
    return parameter.device_mesh if isinstance(parameter, DTensor) else None
