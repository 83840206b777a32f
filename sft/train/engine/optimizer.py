"""AdamW from the config: which parameters it trains, which of them decay, and how gradients are clipped."""

from typing import Any

import torch
from torch import Tensor, nn

from sft.config.engine import OptimizerConfig


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that have gradients and moments, by name; frozen ones have neither."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved_bytes(model: nn.Module) -> int:
    """Size of a checkpoint: all weights, and AdamW's two moments of the trained ones."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + 2 * sum(parameter.nbytes for parameter in trained(model).values())


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """PyTorch's AdamW on the trained parameters: fused on the CPU too, so that offloading compiles nothing."""
    groups = parameter_groups(model, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def unscale_and_clip_(gradients: list[Tensor], scale: float, grad_norm: float, clip_norm: float) -> None:
    """Divide gradients by their scale, then clip their norm; a limit of 0 means no clipping."""
    clip = min(1.0, clip_norm / grad_norm) if clip_norm and grad_norm else 1.0
    torch._foreach_mul_(gradients, clip / scale)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trained parameters as optimizers take them: with weight decay and, if biases and norms have none, without.

    Invariant: each trained parameter is in one group, and no group is empty.
    """
    decaying: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in trained(model).values():
        # Biases and norms are the vectors among the parameters; sharding keeps the number of dimensions.
        is_decaying = parameter.ndim > 1 or config.decay_biases_and_norms
        (decaying if is_decaying else others).append(parameter)
    groups = ({"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
