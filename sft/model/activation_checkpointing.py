"""Which activations a block keeps for the backward pass, and which it recomputes."""

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from sft.config.model import ActivationCheckpointing

Call = Callable[..., Any]
"""Calls a function with its inputs."""


def runners(policy: ActivationCheckpointing) -> tuple[Call, Call]:
    """The functions that run a whole block, and its parts that end in a matrix product."""
    return {"none": (keep, keep), "cheap": (keep, recompute), "full": (recompute, keep)}[policy]


def keep(function: Call, *inputs: Any) -> Any:
    """Call a function unchanged: autograd keeps what the backward pass needs."""
    return function(*inputs)


def recompute(function: Call, *inputs: Any) -> Any:
    """Call a function, keeping only its inputs; the backward pass runs it again.

    The second run ends as soon as the last tensor that was not kept is recomputed. In a function that ends in a
    matrix product this is the input of that product, so the product itself is not repeated.
    """
    # No block draws random numbers, so their state need not be kept for the second run.
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
