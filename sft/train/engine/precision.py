"""The arithmetic of the forward and backward pass; weights, gradients and optimizer state stay fp32."""

from contextlib import AbstractContextManager, nullcontext

import torch

from sft.config.model import Precision

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """A context in which matrix products run in the given precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=HALF[precision])
