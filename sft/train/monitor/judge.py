"""After every step: what was unusual about it is recorded, and a run that must not go on ends."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from sft.train.engine.base import StepResult
from sft.train.monitor import metrics
from sft.train.monitor.bad_steps import write_bad_step
from sft.train.monitor.health import Spike, is_bad, numerics_error, reason_to_end, skip_reason
from sft.train.run import Run

log = logging.getLogger(__name__)


def judge(run: Run, packs: Sequence[int], result: StepResult, loss: float) -> None:
    """Record a changed loss scale, the begin of a loss spike, and the rows of a bad step.

    Raises: NumericsError if the run must not go on.
    """
    counts, config = run.counts, run.config
    change = counts.add_scale(result.scale)
    if change:
        run.tracker.log(metrics.SCALE, counts.num_steps, **dataclasses.asdict(change))
    spike = counts.add_loss(loss, config.health.spike_window, config.health.spike_sigmas)
    if spike:
        run.tracker.log(metrics.SPIKE, counts.num_steps, **dataclasses.asdict(spike), packs=list(packs))
        if run.ranks.is_first:
            _warn(counts.num_steps, spike, run.folder.path)
    end = reason_to_end(
        counts, result, loss, max_bad_steps=config.health.max_bad_steps, max_loss=config.health.max_loss
    )
    report = _report(run, packs, result, loss, end) if run.ranks.is_first and (end or is_bad(result)) else None
    if end:
        raise numerics_error(counts, packs, end, run.folder.path, report)


def _warn(step: int, spike: Spike, folder: Path) -> None:
    log.warning(
        "step %d: loss %.4g leaps above its recent mean of %.4g: `sft inspect %s --step %d` shows its rows",
        *(step, spike.loss, spike.mean, folder, step),
    )


def _report(run: Run, packs: Sequence[int], result: StepResult, loss: float, end: str | None) -> Path | None:
    """Write the file about a bad step."""
    numbers = {"loss": loss, "grad_norm": result.grad_norm, "scale": result.scale, "skipped": result.is_skipped}
    return write_bad_step(
        run.folder.path,
        run.inputs.split,
        run.inputs.shards.documents,
        run.counts.num_steps,
        packs,
        ended_the_run=end is not None,
        attempt=run.tracker.attempt,
        reason=skip_reason(result) if result.is_skipped else end,
        bad_steps_in_a_row=run.counts.num_bad_in_a_row,
        **metrics.as_json(numbers),
    )
