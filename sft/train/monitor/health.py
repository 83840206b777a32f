"""Checks after every step: unusual events are recorded, and a run that must not continue ends.

Every process reaches the same decision; the first one records it.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from sft.config.train import HealthConfig
from sft.data.shards import Shards, Split
from sft.errors import NumericsError
from sft.train.engine.base import SMALLEST_SCALE, StepResult
from sft.train.monitor.bad_steps import write_bad_step
from sft.train.monitor.counts import Counts, Spike, counted, is_bad, summary
from sft.train.monitor.metrics import Tracker
from sft.train.monitor.records import SCALE, SPIKE, as_json
from sft.train.run_layout import RunLayout

NUM_PACKS_SHOWN = 8

log = logging.getLogger(__name__)


class HealthMonitor:
    """Counts the steps of a run, reports unusual events, and ends a run that must not continue."""

    def __init__(
        self,
        config: HealthConfig,
        folder: RunLayout,
        shards: Shards,
        split: Split,
        tracker: Tracker,
        *,
        counts: Counts,
        is_first: bool,
    ) -> None:
        self._config, self._folder, self._shards, self._split = config, folder, shards, split
        self._tracker, self._is_first = tracker, is_first
        self.counts = counts
        self.eval_loss: float | None = None
        """Held-out loss after the last step, if it was measured."""

    def add(self, result: StepResult, num_tokens: int, num_supervised: int) -> None:
        """Count one more step."""
        self.counts.add(result, num_tokens, num_supervised)
        self.eval_loss = None

    def add_eval_loss(self, loss: float) -> None:
        """Remember the held-out loss that was measured after the last step."""
        self.eval_loss = loss

    @property
    def summary(self) -> str:
        """The unusual events of the run, as one line; empty if there were none."""
        return summary(self.counts)

    def judge(self, packs: Sequence[int], result: StepResult, loss: float) -> None:
        """Record a changed loss scale, the start of a loss spike, and the rows of a bad step.

        Raises: NumericsError if the run must not continue.
        """
        counts, config, step = self.counts, self._config, self.counts.num_steps
        if change := counts.add_scale(result.scale):
            self._tracker.log(SCALE, step, **dataclasses.asdict(change))
        if spike := counts.add_loss(loss, config.spike_window, config.spike_sigmas):
            self._tracker.log(SPIKE, step, **dataclasses.asdict(spike), packs=list(packs))
            self._warn(spike)
        end = reason_to_end(counts, result, loss, max_bad_steps=config.max_bad_steps, max_loss=config.max_loss)
        report = self._report(packs, result, loss, end) if self._is_first and (end or is_bad(result)) else None
        if end:
            raise numerics_error(counts, packs, end, self._folder.path, report)

    def _warn(self, spike: Spike) -> None:
        step, folder = self.counts.num_steps, self._folder.path
        if self._is_first:
            log.warning(
                "step %d: loss %.4g is far above its recent mean of %.4g: `sft inspect %s --step %d` shows its rows",
                *(step, spike.loss, spike.mean, folder, step),
            )

    def _report(self, packs: Sequence[int], result: StepResult, loss: float, end: str | None) -> Path | None:
        """Write the file about a bad step."""
        numbers = {"loss": loss, "grad_norm": result.grad_norm, "scale": result.scale, "skipped": result.is_skipped}
        return write_bad_step(
            self._folder.bad_step(self.counts.num_steps),
            self._split,
            self._shards.documents,
            self.counts.num_steps,
            packs,
            ended_the_run=end is not None,
            attempt=self._tracker.attempt,
            reason=skip_reason(result) if result.is_skipped else end,
            bad_steps_in_a_row=self.counts.num_bad_in_a_row,
            **as_json(numbers),
        )


def skip_reason(result: StepResult) -> str:
    """Why a skipped step was skipped, in a few words."""
    if not math.isfinite(result.loss_sum):
        return f"loss is {result.loss_sum}"
    if result.scale > SMALLEST_SCALE:
        return f"gradient overflows at loss scale {result.scale:.0f}"
    return f"gradient norm is {result.grad_norm}"


def reason_to_end(
    counts: Counts, result: StepResult, loss: float, *, max_bad_steps: int, max_loss: float | None
) -> str | None:
    """Why training must not continue after this step, or None."""
    if is_bad(result) and counts.num_bad_in_a_row >= max_bad_steps:
        floor = " at the smallest loss scale" if result.scale <= SMALLEST_SCALE and counts.num_scale_cuts else ""
        return (
            f"loss {loss} and gradient norm {result.grad_norm}: not finite in "
            f"{counted(counts.num_bad_in_a_row, 'step')} in a row{floor}; the weights were left alone"
        )
    if max_loss is not None and max_loss < loss < math.inf:
        return f"loss {loss:.4g} is above health.max_loss={max_loss:g}"
    return None


def numerics_error(
    counts: Counts, packs: Sequence[int], reason: str, folder: Path, report: Path | None
) -> NumericsError:
    """The error that ends the run, naming the step, its packs and the file with their rows."""
    shown = ", ".join(map(str, packs[:NUM_PACKS_SHOWN])) + (", …" if len(packs) > NUM_PACKS_SHOWN else "")
    rows = f"their rows are in {report}: " if report else ""
    return NumericsError(
        reason,
        on=f"step {counts.num_steps}, packs {shown}",
        hint=f"{rows}look at them with `sft inspect {folder} --step {counts.num_steps}`; "
        "lower optimizer.lr, or train in bf16",
    )
