"""AdamW with weight decay on matrices only, and clipping by the global gradient norm.

Both work on plain tensors and on sharded ones (DTensors), whatever their mesh. The
optimizer's values are the report's; that biases and norms do not decay is ours.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from slm2_minimal.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters. The learning rate is set before every step.

    Parameters of two or more dimensions decay, biases and norm weights do not. Fused
    kernels take tensors of one mesh at a time, so every mesh has a group of its own.
    """
    groups: dict[Any, dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        group = groups.setdefault((decay, mesh), {"params": [], "weight_decay": decay})
        group["params"].append(parameter)

    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(list(groups.values()), lr=0.0, betas=betas, eps=config.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate of the step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Float[Tensor, ""]:
    """Scale all gradients so that their global norm is at most `max_norm`.

    Returns the norm they had. Sharded gradients may lie on several meshes: with tensor
    parallelism, norms and embeddings are on another than the blocks' matrices. The
    squares of each kind are summed over the ranks that share it, and no replica counts
    twice. Every rank must call this.
    """
    # Gradients that are sharded alike are measured together.
    kinds: dict[Any, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            kinds[gradient.device_mesh, gradient.placements].append(gradient.to_local())
        elif gradient is not None:
            kinds[None, ()].append(gradient)
    if not kinds:
        return torch.zeros(())

    norms = [
        shared_norm(gradients, mesh, placements) for (mesh, placements), gradients in kinds.items()
    ]
    total = torch.linalg.vector_norm(torch.stack(norms))
    if any(mesh is not None and mesh.ndim > 1 for mesh, _ in kinds):
        # Groups that reduced apart may differ in the last bit: all go on with the mean,
        # which is NaN for all where it is NaN for one.
        dist.all_reduce(total)
        total /= dist.get_world_size()

    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradients in kinds.values():
        torch._foreach_mul_(gradients, factor)
    return total


def shared_norm(gradients: list[Tensor], mesh: Any, placements: Any) -> Float[Tensor, ""]:
    """The norm of gradients of one kind, summed over the ranks that share them."""
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    sharded = [dim for dim, kind in enumerate(placements) if not isinstance(kind, Replicate)]
    if not sharded:
        return norm

    square = norm.square()
    for dim in sharded:
        dist.all_reduce(square, group=mesh.get_group(dim))
    return square.sqrt()
