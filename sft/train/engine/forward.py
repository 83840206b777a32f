"""Moves a batch to the device and through an objective, the same for every engine and for evaluation.

Shape letters: T tokens of the batch, S supervised ones among them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft.data.batches.batch import Batch
from sft.model.attention import Documents
from sft.model.embedding_noise import EmbeddingNoise
from sft.model.objectives.base import CORRECT, LOSS

Forward = Callable[..., dict[str, Tensor]]
"""An objective, or a module that wraps it."""
Measure = Callable[[Batch], tuple[NDArray[np.float64], NDArray[np.bool_]]]
"""Loss of each supervised token of a batch, and whether it was the most likely."""


class Inputs(NamedTuple):
    """The inputs of an objective, on its device."""

    input_ids_T: Tensor
    documents: Documents
    targets_T: Tensor


def to_device(batch: Batch, device: torch.device) -> Inputs:
    """A batch as tensors on the device."""
    input_ids_T, targets_T = _sent(batch.input_ids_T, device), _sent(batch.targets_T, device)
    return Inputs(input_ids_T, Documents.of(batch.doc_lengths, device), targets_T)


def named_sums(
    objective: Forward, batch: Batch, device: torch.device, *, noise_alpha: float, width: int
) -> dict[str, Tensor]:
    """The objective's sums over the supervised tokens of a batch, with noise on embeddings of this width, if any."""
    noise = None
    if batch.doc_seeds:
        noise = EmbeddingNoise.of(batch.doc_lengths, batch.doc_seeds, noise_alpha, width, device)
    return objective(*to_device(batch, device), noise=noise)


@torch.no_grad()
def measure(
    objective: Forward, device: torch.device, autocast: AbstractContextManager[object], batch: Batch
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Loss of each supervised token of a batch, and whether it was the most likely.

    Shapes: (S,), (S,).
    """
    with autocast:
        found = objective(*to_device(batch, device), per_token=True)
    return found[LOSS].double().cpu().numpy(), found[CORRECT].cpu().numpy()


def _sent(array_T: NDArray[Any], device: torch.device) -> Tensor:
    tensor_T = torch.from_numpy(array_T)
    if device.type != "cuda":
        return tensor_T.to(device)
    # From pinned memory the copy does not wait for queued kernels.
    return tensor_T.pin_memory().to(device, non_blocking=True)
