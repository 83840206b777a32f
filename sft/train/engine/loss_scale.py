"""The dynamic fp16 loss scale: halved by every overflow, doubled after a window without one."""

from typing import Any

from sft.config.train import TrainConfig
from sft.train.engine.base import SMALLEST_SCALE


class LossScale:
    """The factor that keeps fp16 gradients within the format's range; always a power of two, so it rounds nothing."""

    def __init__(self, config: TrainConfig) -> None:
        self._is_used, self._window = config.precision == "fp16", config.fp16.scale_window
        self.value = 2.0**config.fp16.initial_scale_power if self._is_used else SMALLEST_SCALE
        self._num_good = 0

    def update(self, *, is_finite: bool) -> None:
        """Learn whether the gradient of a step was finite."""
        if not self._is_used:
            return
        if not is_finite:
            self.value, self._num_good = max(self.value / 2, SMALLEST_SCALE), 0
            return
        self._num_good += 1
        if self._num_good == self._window:
            self.value, self._num_good = self.value * 2, 0

    def state(self) -> dict[str, Any]:
        """What it knows, as JSON values."""
        return {"value": self.value, "num_good": self._num_good}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.value, self._num_good = state["value"], state["num_good"]
