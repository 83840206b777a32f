"""The dynamic fp16 loss scale: halved by every overflow, doubled after a window without one."""

from typing import Any

from sft.config.engine import Fp16Config
from sft.train.engine.base import SMALLEST_SCALE


class LossScale:
    """The factor that keeps fp16 gradients within the format's range; always a power of two, so it rounds nothing."""

    def __init__(self, config: Fp16Config | None) -> None:
        """Without a config, in precisions other than fp16, it stays at the minimum."""
        self._window = config.scale_window if config else None
        self.value = 2.0**config.initial_scale_power if config else SMALLEST_SCALE
        self._num_good = 0

    def update(self, *, is_finite: bool) -> None:
        """Adjust the scale after a step, given whether its gradient was finite."""
        if self._window is None:
            return
        if not is_finite:
            self.value, self._num_good = max(self.value / 2, SMALLEST_SCALE), 0
            return
        self._num_good += 1
        if self._num_good == self._window:
            self.value, self._num_good = self.value * 2, 0

    def state(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {"value": self.value, "num_good": self._num_good}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.value, self._num_good = state["value"], state["num_good"]
