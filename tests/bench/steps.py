"""What all trainers are given to do, and how their steps are timed."""

import bisect
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

LR, BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = 1.5e-3, (0.9, 0.99), 1e-8, 0.01, 1.0
"""The rate of configs/small_cpu.yaml, and the schema's defaults."""


@dataclass(frozen=True)
class Work:
    """What every trainer is given to do."""

    shards: Path
    weights: Path
    scratch: Path
    precision: str
    batch_packs: int
    micro_batch_packs: int
    threads: int
    warmup: int
    """Steps before those that count."""
    steps: int

    @property
    def num_steps(self) -> int:
        """One more than counts: a step lasts until the next one begins."""
        return self.warmup + self.steps + 1


@dataclass
class Watch:
    """When each step began, and when each call of some functions began and ended."""

    ticks: list[tuple[float, float]] = field(default_factory=list)
    """The time and the process's CPU time at which each step began."""
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def tick(self) -> None:
        self.ticks.append((time.perf_counter(), time.process_time()))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spans[name].append((start, time.perf_counter()))

    def calls(self, name: str, owner: Any, function: str) -> Any:
        """A patch that times the calls of owner.function."""
        original = getattr(owner, function)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.span(name):
                return original(*arguments, **options)

        return patch.object(owner, function, timed)

    def items(self, name: str, owner: Any, function: str) -> Any:
        """A patch that times the items that owner.function yields."""
        original = getattr(owner, function)

        def timed(*arguments: Any, **options: Any) -> Iterator[Any]:
            items, end = iter(original(*arguments, **options)), object()
            while True:
                with self.span(name):
                    item = next(items, end)
                if item is end:
                    return
                yield item

        return patch.object(owner, function, timed)

    def starts(self, owner: Any, function: str) -> Any:
        """A patch that takes each call of owner.function for the start of a step."""
        original = getattr(owner, function)

        def ticking(*arguments: Any, **options: Any) -> Any:
            self.tick()
            return original(*arguments, **options)

        return patch.object(owner, function, ticking)

    def per_step(self, name: str) -> list[float]:
        """Seconds in calls of this name, for each step but the last."""
        starts = [start for start, _ in self.ticks]
        seconds = [0.0] * len(starts)
        for start, end in self.spans[name]:
            if start >= starts[0]:
                seconds[bisect.bisect_right(starts, start) - 1] += end - start
        return seconds[:-1]

    def described(self, losses: list[float], norms: list[float]) -> dict[str, Any]:
        """What every trainer tells about its steps; the last one has no end and so no time."""
        steps_s, cpu_s = np.diff(self.ticks, axis=0).T.tolist()
        return {"steps_s": steps_s, "steps_cpu_s": cpu_s, "losses": losses, "grad_norms": norms}
