"""Where the time of a few steps goes: a trace for a timeline viewer, and a table of what took longest."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sft.train.run_layout import RunLayout

NUM_ROWS = 30

log = logging.getLogger(__name__)


class StepProfiler:
    """Profiles the steps from `first` on, counted from 1, until `num_steps` are recorded or the run ends."""

    def __init__(self, folder: Path, rank: int, first: int, num_steps: int) -> None:
        self._folder, self._name = RunLayout(folder).profile, f"rank-{rank:05d}"
        self._steps = range(first, first + num_steps)
        self._profile: profile | None = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record the block as this step, if it is one of those to profile."""
        if step not in self._steps:
            yield
            return
        if self._profile is None:
            self._profile = profile(activities=_activities())
            self._profile.start()
        with record_function(f"step {step}"):
            yield
        if step == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what was recorded, if anything; a failed write costs the profile, never the run."""
        recorded, self._profile = self._profile, None
        if recorded is None:
            return
        _wait_for_device()  # kernels that are still queued belong to the steps
        recorded.stop()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(self._folder / f"{self._name}.json.gz"))
            (self._folder / f"{self._name}.txt").write_text(_table(recorded), encoding="utf-8")
        except (OSError, RuntimeError) as error:
            log.warning("the profile cannot be written: %s", error)


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _table(recorded: profile) -> str:
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(recorded.key_averages().table(sort_by=order, row_limit=NUM_ROWS, max_name_column_width=80))
