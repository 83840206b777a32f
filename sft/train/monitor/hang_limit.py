"""How long a process may make no progress before it counts as stuck."""

import math
from collections import deque
from statistics import median

from sft.config.train import HangConfig

STEP = "step"
"""The one phase with a short limit; all others, such as loading and saving, may take long."""
NUM_STEPS_REMEMBERED = 50
NUM_MEDIANS = 5.0


class HangLimit:
    """Derives the time limit for the next beat from the steps done."""

    def __init__(self, config: HangConfig) -> None:
        self._short_s = config.timeout_s or math.inf
        self._long_s = config.first_step_timeout_s or math.inf
        self._steps_s: deque[float] = deque(maxlen=NUM_STEPS_REMEMBERED)
        self._begun_s = self._heard_s = 0.0
        self.phase, self.step = "start", 0

    @property
    def limit_s(self) -> float:
        """Seconds without a beat that are still normal; infinity if the watchdog is switched off."""
        if self.phase != STEP or not self._steps_s:
            return self._long_s
        return max(self._short_s, NUM_MEDIANS * median(self._steps_s))

    def beat(self, phase: str, step: int, now_s: float) -> None:
        """Register a beat; the first one with another phase or step ends the phase before."""
        self._heard_s = now_s
        if (phase, step) == (self.phase, self.step):
            return
        if self.phase == STEP:
            self._steps_s.append(now_s - self._begun_s)
        self.phase, self.step, self._begun_s = phase, step, now_s

    def silent_s(self, now_s: float) -> float:
        """Seconds since the last beat."""
        return now_s - self._heard_s
