"""What the loop asks of whatever runs the arithmetic: one device, or later many."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sft.data.loader import Batch
from sft.model.neox import NeoX

SMALLEST_SCALE = 1.0
"""The fp16 loss scale never goes below this; runs without a loss scale have exactly this."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step."""

    loss_sum: float
    """Cross-entropy summed over the step's supervised tokens."""
    grad_norm: float
    """Norm of the gradient of the step's mean loss, before clipping."""
    scale: float
    """fp16 loss scale that the step was computed with; 1 in other precisions."""
    is_skipped: bool
    """True if loss or gradient was not finite; weights and optimizer state are untouched then."""


EMPTY_STEP = StepResult(loss_sum=0.0, grad_norm=0.0, scale=SMALLEST_SCALE, is_skipped=False)
"""The outcome of a step whose packs hold nothing to learn from; no engine is asked."""


class Engine(Protocol):
    """Weights, gradients and optimizer state of one run."""

    @property
    def model(self) -> NeoX:
        """The model, for measuring."""

    @property
    def checkpoint_bytes(self) -> int:
        """About how much `save` writes."""

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic that the run computes in."""

    def forward_backward(self, batch: Batch, num_supervised: int) -> None:
        """Add a micro-batch's share to the gradient of the step's mean loss.

        `num_supervised` counts the supervised tokens of the whole optimizer step over all micro-batches and ranks,
        so that neither their number nor their size changes the gradient.
        """

    def step(self, lr: float) -> StepResult:
        """Clip, update the weights if everything is finite, and forget the gradient."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Write weights and optimizer state into the folder; what is left is returned as JSON values."""

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Take over exactly what `save` wrote and returned."""
