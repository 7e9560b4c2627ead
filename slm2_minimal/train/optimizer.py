"""AdamW with weight decay on matrices only (report section 3.2), and gradient clipping by the global norm."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slm2_minimal.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Two groups: parameters of two or more dimensions decay, biases and norm weights do not. The rate is set before every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the schedule's rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their global norm is at most `max_norm`; return the norm they had."""
    return nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
