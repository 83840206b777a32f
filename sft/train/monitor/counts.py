"""The counts of a run so far, and the detection of loss spikes.

Values only: every process of a run counts the same, and so does a resumed one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sft.train.engine.base import SMALLEST_SCALE, StepResult

SPIKE_FACTOR = 1.5
"""A spike is at least this many times the mean: where losses hardly vary, a few sigmas are not unusual."""
SPIKE_FILL = 0.25
"""Share of the window that must be filled before a loss can be a spike."""


@dataclass(frozen=True)
class ScaleChange:
    """A change of the fp16 loss scale since the step before."""

    old: float
    new: float
    reason: str


@dataclass(frozen=True)
class Spike:
    """A loss far above the recent ones."""

    loss: float
    mean: float
    limit: float


@dataclass
class Counts:
    """Counts since the first step of a run; JSON values, part of every checkpoint."""

    num_steps: int = 0
    num_tokens: int = 0
    num_supervised_tokens: int = 0
    num_skipped_steps: int = 0
    """Steps whose loss or gradient was not finite; they did not change the weights."""
    num_empty_steps: int = 0
    """Steps whose packs held no supervised token."""
    num_bad_in_a_row: int = 0
    """Bad steps since the last good one."""
    scale: float | None = None
    """fp16 loss scale of the last step that was computed."""
    smallest_scale: float | None = None
    """The smallest loss scale so far."""
    num_scale_cuts: int = 0
    num_scale_raises: int = 0
    recent_losses: list[float] = field(default_factory=list)
    """Finite losses of the last steps, a spike no higher than its limit; the newest last."""
    is_spiking: bool = False
    """True if the last step's loss was a spike, so that the next one belongs to it."""
    num_spikes: int = 0

    def add(self, result: StepResult, num_tokens: int, num_supervised: int) -> None:
        """Count one more step; one without supervised tokens is neither good nor bad."""
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.num_supervised_tokens += num_supervised
        self.num_skipped_steps += result.is_skipped
        if not num_supervised:
            self.num_empty_steps += 1
        elif not result.is_skipped:
            self.num_bad_in_a_row = 0
        elif is_bad(result):
            self.num_bad_in_a_row += 1

    def add_scale(self, scale: float) -> ScaleChange | None:
        """Remember the loss scale that a step was computed with; returns the change since the step before, if any."""
        old, self.scale = self.scale, scale
        self.smallest_scale = scale if self.smallest_scale is None else min(self.smallest_scale, scale)
        if old is None or old == scale:
            return None
        self.num_scale_cuts += scale < old
        self.num_scale_raises += scale > old
        return ScaleChange(old, scale, "overflow" if scale < old else "no overflow for fp16.scale_window steps")

    def add_loss(self, loss: float, window: int, sigmas: float) -> Spike | None:
        """Remember a step's loss; returns the spike if one starts here.

        A loss above the limit enters the window as the limit: it neither hides the next spike by widening the spread,
        nor makes every later loss a spike once losses stay higher.
        """
        if not window or not math.isfinite(loss):
            return None
        limit = loss_limit(self.recent_losses[-window:], window, sigmas)
        was_spiking, self.is_spiking = self.is_spiking, loss > limit
        spike = None
        if self.is_spiking and not was_spiking:
            self.num_spikes += 1
            spike = Spike(loss, float(np.mean(self.recent_losses[-window:])), limit)
        self.recent_losses = [*self.recent_losses, min(loss, limit)][-window:]
        return spike


def loss_limit(recent: Sequence[float], window: int, sigmas: float) -> float:
    """The loss above which a step is a spike; infinity until enough losses are known."""
    if len(recent) < max(2, SPIKE_FILL * window):
        return math.inf
    mean = float(np.mean(recent))
    return max(mean + sigmas * float(np.std(recent)), SPIKE_FACTOR * mean)


def is_bad(result: StepResult) -> bool:
    """Whether the step was skipped and a lower loss scale cannot help the next one.

    An fp16 gradient that overflows above the smallest loss scale is normal: the scale halves and training continues.
    The loss itself does not depend on the scale.
    """
    return result.is_skipped and (result.scale <= SMALLEST_SCALE or not math.isfinite(result.loss_sum))


def summary(counts: Counts) -> str:
    """The unusual events of a run, as one line; empty if there were none."""
    return "; ".join(_remarks(counts))


def _remarks(counts: Counts) -> Iterator[str]:
    if counts.num_skipped_steps:
        share = counts.num_skipped_steps / counts.num_steps
        yield f"{counted(counts.num_skipped_steps, 'step')} skipped as not finite ({share:.2%}), counted as done"
    if counts.num_empty_steps:
        yield f"{counted(counts.num_empty_steps, 'step')} without a supervised token"
    if counts.num_scale_cuts or counts.num_scale_raises:
        yield (
            f"loss scale {counts.scale:.0f}: cut {counted(counts.num_scale_cuts, 'time')}, "
            f"raised {counted(counts.num_scale_raises, 'time')}, smallest {counts.smallest_scale:.0f}"
        )
    if counts.num_spikes:
        yield counted(counts.num_spikes, "loss spike")


def counted(count: int, noun: str) -> str:
    """A number and its noun, plural unless the number is 1."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
