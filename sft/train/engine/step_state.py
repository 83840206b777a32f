"""The state that every engine keeps between micro-batches and between steps.

Shape letters: M named sums of the objective.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sft.config.train import TrainConfig
from sft.model.objectives.base import LOSS
from sft.train.engine.base import StepResult
from sft.train.engine.loss_scale import LossScale


class StepState:
    """The objective's sums over this process's micro-batches, the loss scale and the number of updates."""

    def __init__(self, config: TrainConfig, names: Sequence[str], device: torch.device) -> None:
        self._batch_packs = config.batch_packs
        self._loss_scale = LossScale(config.fp16 if config.precision == "fp16" else None)
        self.num_updates = 0
        """Steps that have changed the weights."""
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}

    @property
    def gradient_scale(self) -> float:
        """The factor by which gradients are scaled until the step.

        Divided by the supervised tokens of a whole step, the gradient of one token would underflow in fp16.
        """
        return self._batch_packs * self._loss_scale.value

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sums of a micro-batch."""
        for name, total in self._sums.items():
            total += sums[name].detach()

    def sums_M(self) -> Tensor:
        """The sums so far, in the order of their names, as a new tensor in fp64."""
        return torch.stack(tuple(self._sums.values()))

    def named(self, sums: Sequence[float]) -> dict[str, float]:
        """Sums in the order of their names, by name."""
        return dict(zip(self._sums, sums, strict=True))

    def finish(self, sums: Mapping[str, float], grad_norm: float, *, is_finite: bool) -> StepResult:
        """The outcome of a step whose sums over all processes are these; the next one starts."""
        scale = self._loss_scale.value
        self.num_updates += is_finite
        self._loss_scale.update(is_finite=is_finite)
        for total in self._sums.values():
            total.zero_()
        return StepResult(sums[LOSS], grad_norm, scale, is_skipped=not is_finite, sums=sums)

    def state(self) -> dict[str, Any]:
        """The number of updates and the loss scale, as JSON values."""
        return {"num_updates": self.num_updates, "loss_scale": self._loss_scale.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.num_updates = state["num_updates"]
        self._loss_scale.restore(state["loss_scale"])
