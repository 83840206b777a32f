"""Training, read this first: next batch, forward and backward, step, maybe measure, maybe save, stop if asked.

What a run is made of is prepared in run.py; the arithmetic of a step is behind engine/base.py.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sft.config import TrainConfig
from sft.data.loader import micro_batches
from sft.data.shards import Split
from sft.errors import DataError, StopRequested, StorageError
from sft.progress import progress
from sft.train import track
from sft.train.checkpoint import checkpoint_path, publish, retire
from sft.train.engine.base import EMPTY_STEP
from sft.train.folder import RunFolder
from sft.train.health import require_numbers
from sft.train.run import Run, read_inputs, start, versions
from sft.train.schedule import learning_rate
from sft.train.stop import Clock, Stop, job_deadline
from sft.train.validate import held_out_loss
from sft.train.world import World

MAX_FAILED_SAVES = 3
SHORTEST_STEP_S = 1e-9
"""Keeps rates finite when a coarse clock does not advance within a step."""

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    *,
    world: World | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Clock = time.monotonic,
) -> None:
    """Train until the last step, going on from the newest whole checkpoint if the run folder has one.

    Raises: StopRequested once everything is saved, if asked to stop; other SftErrors as errors.py says.
    """
    with RunFolder.hold(Path(config.out)) as folder:
        stop = Stop(folder.path, job_deadline(environ, config.stop_margin_s, clock=clock), clock)
        with stop.listening():
            inputs = read_inputs(config, folder)
            if inputs.is_finished:
                print(f"{folder.path}: finished already, the model is in {inputs.checkpoint}")
                return
            with start(config, inputs, folder, world or World.of(environ), stop, clock) as run:
                run_to_end(run)


def run_to_end(run: Run) -> None:
    """Take steps until none is left, then save the result."""
    num_steps = run.inputs.order.num_steps
    run.tracker.log(track.START, run.counts.num_steps, num_steps=num_steps, versions=versions())
    if run.counts.num_steps:
        print(f"{run.folder.path}: going on after step {run.counts.num_steps} of {num_steps}")
    with progress("training", num_steps, unit="steps", start=run.counts.num_steps) as advance:
        while not run.is_finished:
            stop_if_asked(run)
            remark = train_step(run)
            if run.inputs.valid is not None and run.is_due(run.config.eval_every_steps):
                evaluate(run, run.inputs.valid)
            if run.is_due(run.config.save_every_steps):
                save_if_possible(run)
            advance(1, remark)
    checkpoint = save(run)
    print(f"trained {num_steps} steps; the model is in {checkpoint}, the metrics in {run.folder.metrics}")


def train_step(run: Run) -> str:
    """Take one optimizer step; returns a remark on how it went."""
    started_s, order, counts = run.clock(), run.inputs.order, run.counts
    packs = order.batch(counts.num_steps)
    lr = learning_rate(counts.num_steps, order.num_steps, run.config.optimizer)
    num_supervised = int(run.inputs.split.num_supervised_N[packs].sum())
    if num_supervised:
        num_tokens = forward_backward(run, packs, num_supervised)
        result = run.engine.step(lr)
    else:
        log.warning("step %d: its packs hold no supervised token, the weights stay as they are", counts.num_steps + 1)
        num_tokens, result = 0, EMPTY_STEP
    step_s = max(run.clock() - started_s, SHORTEST_STEP_S)
    counts.add(result, num_tokens, num_supervised)
    loss = result.loss_sum / max(num_supervised, 1)
    run.tracker.log(
        track.STEP,
        counts.num_steps,
        loss=loss,
        lr=lr,
        grad_norm=result.grad_norm,
        scale=result.scale,
        skipped=result.is_skipped,
        tokens=num_tokens,
        supervised_tokens=num_supervised,
        tokens_per_s=num_tokens / step_s,
        step_s=step_s,
        epoch=run.epoch,
        **({"packs": packs} if result.is_skipped else {}),
    )
    require_numbers(counts, result, packs, run.config.max_bad_steps)
    return f"loss {loss:.3f} · {num_tokens / step_s:,.0f} tok/s"


def forward_backward(run: Run, packs: Sequence[int], num_supervised: int) -> int:
    """Gather the gradient of one step's packs; returns their number of tokens.

    Raises: DataError if their masks do not hold the number of supervised tokens that divides the loss.
    """
    num_tokens = num_found = 0
    for batch in micro_batches(run.inputs.split, packs, run.config.micro_batch_packs):
        run.engine.forward_backward(batch, num_supervised)
        num_tokens += len(batch.input_ids_T)
        num_found += batch.num_supervised
    if num_found != num_supervised:
        raise DataError(
            f"packs {list(packs)} hold {num_found} supervised tokens, their num_supervised says {num_supervised}",
            on=run.config.shards,
            hint="build the shards again",
        )
    return num_tokens


def evaluate(run: Run, valid: Split) -> None:
    """Measure the held-out loss of every source."""
    losses = held_out_loss(
        run.engine.model,
        valid,
        run.inputs.shards.documents,
        max_packs=run.config.eval_max_packs,
        micro_batch_packs=run.config.micro_batch_packs,
        autocast=run.engine.autocast,
    )
    sources = {
        name: {"loss": it.loss, "perplexity": it.perplexity, "accuracy": it.accuracy, "tokens": it.num_tokens}
        for name, it in losses.items()
    }
    run.tracker.log(track.EVAL, run.counts.num_steps, sources=sources)


def save_if_possible(run: Run) -> None:
    """Save, but let a disk that refuses now and then cost no more than the checkpoint.

    Raises: StorageError if it refuses several times in a row.
    """
    try:
        save(run)
    except StorageError as error:
        run.num_failed_saves += 1
        if run.num_failed_saves == MAX_FAILED_SAVES:
            raise
        log.warning("step %d was not saved, going on: %s", run.counts.num_steps, error)


def save(run: Run) -> Path:
    """Publish a checkpoint of the last step, unless there is one, and retire old ones."""
    step, checkpoints = run.counts.num_steps, run.folder.checkpoints
    if run.saved_step != step:
        started_s = run.clock()
        run.tracker.sync()  # before a checkpoint can say that these records exist
        publish(checkpoints, step, run.engine.checkpoint_bytes, run.write_checkpoint)
        run.saved_step, run.num_failed_saves = step, 0
        run.tracker.log(track.SAVE, step, save_s=run.clock() - started_s)
        retire(checkpoints, run.config.keep_checkpoints)
    return checkpoint_path(checkpoints, step)


def stop_if_asked(run: Run) -> None:
    """Save and leave if a signal, the STOP file or the end of the job's time says so.

    Raises: StopRequested, after everything is saved.
    """
    reason, step = run.stop.reason(), run.counts.num_steps
    if reason is None:
        return
    if step:
        save(run)
    run.tracker.log(track.STOP, step, reason=reason)
    run.stop.clear_file()
    place = f"after step {step} of {run.inputs.order.num_steps}, which is saved" if step else "before the first step"
    raise StopRequested(
        f"{reason}: stopped {place}",
        on=run.folder.path,
        hint="run the same command again to go on from there",
    )
