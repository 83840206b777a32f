"""What a block keeps for the backward pass, and what it computes again there."""

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from sft.config.model import ActivationCheckpointing

Call = Callable[..., Any]
"""Calls a function with its inputs."""


def runners(policy: ActivationCheckpointing) -> tuple[Call, Call]:
    """How to run a whole block, and how to run its parts that end in a matrix product."""
    return {"none": (keep, keep), "cheap": (keep, recompute), "full": (recompute, keep)}[policy]


def keep(function: Call, *inputs: Any) -> Any:
    """Call a function as it is: autograd keeps what the backward pass will ask for."""
    return function(*inputs)


def recompute(function: Call, *inputs: Any) -> Any:
    """Call a function, keeping nothing but its inputs; the backward pass runs it again.

    The second run ends as soon as the last tensor that was not kept is there again. In a function that ends in a
    matrix product this is the input of that product, so the product itself is not repeated.
    """
    # No block draws random numbers, so their state need not be kept for the second run.
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
