"""Finds ranks that slow down the others, in a run in which all wait for each other many times per step.

Sharded engines synchronize in every layer, so that the wall time of a step is the same on all ranks. They differ only
in work that needs no other rank: loading batches, and a small matrix product that serves as a probe.

R = ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Item = TypeVar("Item")

CPU_SIDE, CUDA_SIDE = 256, 4096
"""Side of the square matrices of the probe: a millisecond or less on either device."""
WINDOW_STEPS = 50
NUM_WINDOWS = 3
"""Consecutive windows after which a rank counts as slow, or no longer does."""
SLOW_FACTOR = 1.3
SHORTEST_STEP_S = 1e-9
"""Keeps rates finite when a coarse clock does not advance within a step."""


class StragglerMonitor:
    """Times every step, and the work of this process alone in it; names the ranks that all others wait for."""

    def __init__(self, device: torch.device, hosts: Sequence[str], clock: Callable[[], float]) -> None:
        self._clock, self._num_ranks = clock, len(hosts)
        self._timer, self._slow_ranks = RankTimer(device, clock), SlowRanks(hosts)
        self._started_s = self._step_s = 0.0

    def start_step(self) -> None:
        """Start the clock of a step."""
        self._started_s = self._clock()

    def end_step(self) -> float:
        """Stop the clock of the step; returns its seconds."""
        self._step_s = max(self._clock() - self._started_s, SHORTEST_STEP_S)
        return self._step_s

    def loading(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with the time counted that they take to come."""
        return self._timer.loading(items)

    def take(self) -> tuple[float, float]:
        """Seconds of loading since the last call, and of the probe; to be called when the device has done the step."""
        return self._timer.take()

    def add(self, loading_s: Sequence[float], probe_s: Sequence[float]) -> list[str]:
        """Compare the times of all ranks in the last step; returns new remarks about ranks."""
        if self._num_ranks == 1 or not self._step_s:
            return []
        return self._slow_ranks.add(own_seconds(self._step_s, np.array(loading_s), np.array(probe_s)))


class RankTimer:
    """Times the work that this process does alone within a step."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._clock, self._loading_s, self._probe_s = clock, 0.0, 0.0
        is_cuda = device.type == "cuda"
        side, dtype = (CUDA_SIDE, torch.bfloat16) if is_cuda else (CPU_SIDE, torch.float32)
        # Not random, so that the run's generators are unchanged.
        self._matrix = torch.full((side, side), 0.5, dtype=dtype, device=device)
        self._product = torch.empty_like(self._matrix)
        self._events = _events() if is_cuda else None
        self._probe()
        if is_cuda:
            torch.cuda.synchronize(device)

    def loading(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with the time counted that they take to come."""
        rest = iter(items)
        while True:
            started_s = self._clock()
            try:
                item = next(rest)
            except StopIteration:
                return
            finally:
                self._loading_s += self._clock() - started_s
            yield item

    def take(self) -> tuple[float, float]:
        """Seconds of loading since the last call, and of the probe; to be called when the device has done the step."""
        if self._events is not None and self._events[1].query():  # type: ignore[no-untyped-call]
            self._probe_s = self._events[0].elapsed_time(self._events[1]) / 1000
        taken = self._loading_s, self._probe_s
        self._loading_s = 0.0
        self._probe()
        return taken

    def _probe(self) -> None:
        """Multiply matrices; a CUDA device does it later, and `take` reads its time one step later."""
        started_s = self._clock()
        if self._events is not None:
            self._events[0].record()
        torch.mm(self._matrix, self._matrix, out=self._product)
        if self._events is not None:
            self._events[1].record()
        else:
            self._probe_s = self._clock() - started_s


def own_seconds(step_s: float, loading_s_R: NDArray[np.float64], probe_s_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """The time that a step would have taken each rank alone, from the common wall time and its RankTimer.

    All wait for the rank that loads longest, and computing takes as long as the slowest device needs.
    """
    computing_s = max(step_s - loading_s_R.max(), 0.0)
    slowest_s = max(probe_s_R.max(), np.finfo(float).tiny)
    alone_s_R: NDArray[np.float64] = loading_s_R + computing_s * probe_s_R / slowest_s
    return alone_s_R


class SlowRanks:
    """Compares every rank's median step of each window with the median rank's."""

    def __init__(self, hosts: Sequence[str], window_steps: int = WINDOW_STEPS) -> None:
        self._hosts, self._window_steps = hosts, window_steps
        self._seconds_by_step_R: list[NDArray[np.float64]] = []
        self._is_slow_R = np.zeros(len(hosts), bool)
        self._num_contrary_R = np.zeros(len(hosts), int)
        """Consecutive windows that contradict the current status of a rank."""

    def add(self, seconds_R: NDArray[np.float64]) -> list[str]:
        """Add the seconds that each rank would need alone for one step; returns new remarks about ranks."""
        self._seconds_by_step_R.append(seconds_R)
        if len(self._seconds_by_step_R) < self._window_steps:
            return []
        median_R = np.median(self._seconds_by_step_R, axis=0)
        self._seconds_by_step_R.clear()
        # With an even number of ranks, the faster middle one: of two ranks, the slow one would raise its own reference.
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


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """The start and the end of the probe."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return begin, end
