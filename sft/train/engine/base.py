"""The interface between the loop and an engine: one device or many, PyTorch's own sharding or DeepSpeed's.

Every process of a run makes the same calls in the same order, and gets the same result for a step.

Shape letters: S supervised tokens of a batch.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sft.data.batches.batch import Batch
from sft.model.base import LanguageModel

SMALLEST_SCALE = 1.0
"""The fp16 loss scale never goes below this; runs without a loss scale have exactly this."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step, over all processes."""

    loss_sum: float
    """Cross-entropy summed over the step's supervised tokens."""
    grad_norm: float
    """Norm of the gradient of the step's mean loss, before clipping."""
    scale: float
    """fp16 loss scale that the step was computed with; 1 in other precisions."""
    is_skipped: bool
    """True if loss or gradient was not finite; weights and optimizer state are then unchanged."""
    sums: Mapping[str, float] = field(default_factory=dict)
    """All sums of the objective over the step's supervised tokens, the loss included."""


EMPTY_STEP = StepResult(loss_sum=0.0, grad_norm=0.0, scale=SMALLEST_SCALE, is_skipped=False)
"""The outcome of a step whose packs hold no supervised token; no engine is called."""

Kind = Literal["weight", "exp_avg", "exp_avg_sq"]
MOMENTS: tuple[Kind, Kind] = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of a parameter's gradient and of its square."""


@dataclass(frozen=True, eq=False)
class TensorSlice:
    """Contiguous elements of a flattened parameter, or of one of its moments."""

    kind: Kind
    name: str
    """Shape of the whole parameter."""
    start: int
    tensor: Tensor
    """A view of the elements in fp32, not a copy; in the parameter's shape if it is whole."""
    is_whole: bool
    """True if these are all elements of the parameter."""


class TensorSource(Protocol):
    """The source from which an engine loads weights and moments."""

    def flat(self, kind: Kind, name: str, start: int, stop: int) -> Tensor:
        """The elements of a flattened parameter, or of one of its moments, from start to stop, on the CPU."""


class Engine(Protocol):
    """Weights, gradients and optimizer state of one run, or this process's share of them."""

    @property
    def model(self) -> LanguageModel:
        """The model; its parameters may be only a share."""

    @property
    def is_shared(self) -> bool:
        """True if no process holds every weight in full, so that only the engine can compute with them."""

    @property
    def checkpoint_bytes(self) -> int:
        """Approximate size of a checkpoint, over all processes."""

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic that the run computes in."""

    def forward_backward(self, batch: Batch, num_supervised: int, *, is_last: bool) -> None:
        """Add a micro-batch's share to the gradient of the step's mean loss, and to the objective's sums.

        `num_supervised` counts the supervised tokens of the whole optimizer step over all micro-batches and processes,
        so that neither their number nor their size changes the gradient. With the last micro-batch the engine
        adds up the gradients of all processes.
        """

    def measure(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Loss of each supervised token, and whether it was the most likely.

        Shapes: (S,), (S,).
        """

    def step(self, lr: float) -> StepResult:
        """Clip, update the weights if everything is finite on every process, and reset the gradient."""

    @property
    def share(self) -> int:
        """The number of this process's share of the weights; processes with the same number hold the same share."""

    def slices(self) -> Iterator[TensorSlice]:
        """The slices that this process saves: over all processes, every element of weights and moments once."""

    def state(self) -> dict[str, Any]:
        """Other state, the same on every process, as JSON values."""

    def load(self, source: TensorSource) -> None:
        """Load the weights to start from."""

    def restore(self, source: TensorSource, state: dict[str, Any]) -> None:
        """Resume from a checkpoint of any engine with any number of processes."""
