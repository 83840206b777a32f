"""Finds ranks that hold up the others, from the time that a step would take each one on its own.

R = ranks; S = steps of a window.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW_STEPS = 50
NUM_WINDOWS = 3
"""Windows in a row after which a rank counts as slow, or no longer does."""
SLOW_FACTOR = 1.3


def own_seconds(step_s: float, loading_s_R: NDArray[np.float64], probe_s_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a step that all began and ended together would have taken each rank alone, from what pace.py measured.

    The one that loads longest is waited for, and computing takes as long as the slowest device needs.
    """
    computing_s = max(step_s - loading_s_R.max(), 0.0)
    slowest_s = max(probe_s_R.max(), np.finfo(float).tiny)
    alone_s_R: NDArray[np.float64] = loading_s_R + computing_s * probe_s_R / slowest_s
    return alone_s_R


class SlowRanks:
    """Compares every rank's median step of each window with the median rank's."""

    def __init__(self, hosts: Sequence[str], window_steps: int = WINDOW_STEPS) -> None:
        self._hosts, self._window_steps = hosts, window_steps
        self._seconds_SR: list[NDArray[np.float64]] = []
        self._is_slow_R = np.zeros(len(hosts), bool)
        self._num_contrary_R = np.zeros(len(hosts), int)
        """Windows in a row that speak against what a rank counts as."""

    def add(self, seconds_R: NDArray[np.float64]) -> list[str]:
        """Take the seconds of one step that each rank would need alone; returns what is new to say about ranks."""
        self._seconds_SR.append(seconds_R)
        if len(self._seconds_SR) < self._window_steps:
            return []
        median_R = np.median(self._seconds_SR, axis=0)
        self._seconds_SR.clear()
        # Of an even number of ranks the faster middle one: of two, the slow one would be half of its own yardstick.
        factor_R = median_R / max(np.quantile(median_R, 0.5, method="lower"), np.finfo(float).tiny)
        is_contrary_R = (factor_R >= SLOW_FACTOR) != self._is_slow_R
        self._num_contrary_R = np.where(is_contrary_R, self._num_contrary_R + 1, 0)
        turned_R = self._num_contrary_R >= NUM_WINDOWS
        self._is_slow_R ^= turned_R
        self._num_contrary_R[turned_R] = 0
        return [self._sentence(int(rank), float(factor_R[rank])) for rank in np.flatnonzero(turned_R)]

    def _sentence(self, rank: int, factor: float) -> str:
        who, num_steps = f"rank {rank} on {self._hosts[rank]}", NUM_WINDOWS * self._window_steps
        if self._is_slow_R[rank]:
            return f"{who} takes {factor:.2f} times as long as the median rank for {num_steps} steps: all wait"
        return f"{who} keeps up with the others again ({factor:.2f} times the median rank)"
