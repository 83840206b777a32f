"""How fast this process is by itself, in a run in which all wait for each other many times per step.

Sharded engines meet inside every layer, so that the wall time of a step is the same on all ranks. What tells them apart
is what they do without the others: get their batches, and a small piece of arithmetic made for the purpose.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

Item = TypeVar("Item")

CPU_SIDE, CUDA_SIDE = 256, 4096
"""Side of the square matrices of the probe: a millisecond or less on either device."""


class Pace:
    """Takes the time of what this process does alone within a step."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._clock, self._loading_s, self._probe_s = clock, 0.0, 0.0
        is_cuda = device.type == "cuda"
        side, dtype = (CUDA_SIDE, torch.bfloat16) if is_cuda else (CPU_SIDE, torch.float32)
        # Not random: the run's generators are left alone.
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
        """Multiply; a CUDA device does it later, and `take` reads its time one step later."""
        started_s = self._clock()
        if self._events is not None:
            self._events[0].record()
        torch.mm(self._matrix, self._matrix, out=self._product)
        if self._events is not None:
            self._events[1].record()
        else:
            self._probe_s = self._clock() - started_s


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """The begin and the end of the probe."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return begin, end
