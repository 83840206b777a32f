"""Which parameters are trained, and which of them decay."""

from typing import Any

from torch import Tensor, nn

from sft.config.engine import OptimizerConfig


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that have gradients and moments, by name; frozen ones have neither."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved_bytes(model: nn.Module) -> int:
    """What a checkpoint takes: all weights, and AdamW's two moments of the trained ones."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + 2 * sum(parameter.nbytes for parameter in trained(model).values())


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trained parameters as optimizers take them: with weight decay and, if biases and norms have none, without.

    Invariant: each trained parameter is in one group, and no group is empty.
    """
    decaying: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in trained(model).values():
        # Biases and norms are the vectors among the parameters; sharding leaves the number of dimensions as it is.
        is_decaying = parameter.ndim > 1 or config.decay_biases_and_norms
        (decaying if is_decaying else others).append(parameter)
    groups = ({"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
