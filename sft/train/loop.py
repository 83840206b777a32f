"""Training, read this first: next batches, forward and backward, step, maybe measure, maybe save, stop if asked.

What a run is made of is prepared in run.py; the arithmetic of a step is behind engine/base.py. Every process of the run
takes the same way through this file; what they tell each other once per step is in `settle`.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft.config.train import TrainConfig
from sft.console.progress import progress
from sft.data.batches.batch import Batch
from sft.data.shards import Split
from sft.errors import DataError, PeerError, StopRequested
from sft.train.checkpoint.async_writer import WRITTEN
from sft.train.checkpoint.checkpointer import publish_if_possible, save, save_if_possible
from sft.train.distributed.rank_batches import my_share, num_rounds, shared_batches
from sft.train.distributed.ranks import connected
from sft.train.distributed.world import World, choose_device
from sft.train.engine.base import EMPTY_STEP
from sft.train.held_out_loss import ALL, held_out_loss
from sft.train.inputs import read_inputs
from sft.train.lr_schedule import learning_rate
from sft.train.monitor import metrics
from sft.train.monitor.hang_limit import STEP
from sft.train.monitor.health import skip_reason, summary
from sft.train.monitor.judge import judge
from sft.train.monitor.stragglers import own_seconds
from sft.train.monitor.watchdog import Watchdog
from sft.train.numerics.gate import kernel_name, pick, require_exact
from sft.train.run import Run, start, versions
from sft.train.run_folder import RunFolder
from sft.train.stop import Clock, Stop, job_deadline

SHORTEST_STEP_S = 1e-9
"""Keeps rates finite when a coarse clock does not advance within a step."""
NO_PACK = -1


def train(
    config: TrainConfig,
    *,
    world: World | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Clock = time.monotonic,
    meeting_place: str = "env://",
) -> None:
    """Train until the last step, going on from the newest whole checkpoint if the run folder has one.

    Raises: StopRequested once everything is saved, if asked to stop; other SftErrors as errors.py says.
    """
    world = world or World.of(environ)
    device = choose_device(config.device, world.local_rank)
    stop = Stop(Path(config.out), job_deadline(environ, config.stop_margin_s, clock=clock), clock)
    with (
        stop.listening(),
        connected(world, device, timeout_s=config.distributed.timeout_s, init_method=meeting_place) as ranks,
        RunFolder.hold(Path(config.out), ranks) as folder,
        Watchdog(folder.path, world, config) as watchdog,
    ):
        inputs = read_inputs(config, folder, ranks)
        if inputs.is_finished:
            if ranks.is_first:
                print(f"{folder.path}: finished already, the model is in {inputs.checkpoint}")
            return
        with start(config, inputs, folder, ranks, device, stop, clock, watchdog) as run:
            run_to_end(run)


def run_to_end(run: Run) -> None:
    """Take steps until none is left, then save the result."""
    num_steps = run.inputs.order.num_steps
    run.tracker.log(metrics.START, run.counts.num_steps, num_steps=num_steps, versions=versions(), world=run.ranks.size)
    pass_gate(run)
    if run.counts.num_steps:
        run.say(f"{run.folder.path}: going on after step {run.counts.num_steps} of {num_steps}")
    settle(run)
    if run.config.evaluation.at_start and not run.counts.num_steps:
        evaluate(run)
    with progress("training", num_steps, unit="steps", start=run.counts.num_steps, shown=run.ranks.is_first) as advance:
        while not run.is_finished:
            stop_if_asked(run)
            with run.profiler.step(run.counts.num_steps + 1):
                remark = train_step(run)
            settle(run)
            if run.is_due(run.config.evaluation.every_steps):
                evaluate(run)
            if run.is_due(run.config.checkpoint.every_steps):
                save_if_possible(run)
            advance(1, remark)
    checkpoint = save(run)
    run.say(f"trained {num_steps} steps; the model is in {checkpoint}, the metrics in {run.folder.metrics}")
    if remarks := summary(run.counts):
        run.say(f"on the way: {remarks}")


def pass_gate(run: Run) -> None:
    """Prove on a pack of the next step that kernel and precision compute what they should; see gate.py.

    Raises: NumericsError if they do not.
    """
    if not run.config.health.numerics_gate:
        return
    run.beat("gate")
    model, split, precision = run.engine.model, run.inputs.split, run.config.precision
    index = pick(split, run.inputs.order.batch(run.counts.num_steps))
    name = f"train pack {index} of {run.config.shards}"
    checks = require_exact(
        run.engine.measure, model, split[index], precision, run.ranks, name, is_shared=run.engine.is_shared
    )
    measured = {check.what: check.measured for check in checks}
    run.tracker.log(
        metrics.GATE, run.counts.num_steps, pack=index, kernel=kernel_name(model, precision), checks=measured
    )


def train_step(run: Run) -> str:
    """Take one optimizer step; returns a remark on how it went."""
    started_s, order, counts = run.clock(), run.inputs.order, run.counts
    packs = order.batch(counts.num_steps)
    run.beat(STEP)
    lr = learning_rate(counts.num_steps, order.num_steps, run.config.optimizer)
    num_supervised = int(run.inputs.split.num_supervised_N[packs].sum())
    if num_supervised:
        forward_backward(run, packs, num_supervised)
        run.saver.before_update()
        result = run.engine.step(lr)
    else:
        run.warn("its packs hold no supervised token, the weights stay as they are")
        run.consumed = tuple(my_share(run.inputs.split, packs, run.ranks, run.cost_per_token))
        result = EMPTY_STEP
    run.step_s = step_s = max(run.clock() - started_s, SHORTEST_STEP_S)
    num_tokens = int(run.inputs.num_tokens_N[packs].sum()) if num_supervised else 0
    counts.add(result, num_tokens, num_supervised)
    run.eval_loss = None
    loss = result.loss_sum / max(num_supervised, 1)
    run.tracker.log(
        metrics.STEP,
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
        **({"packs": packs, "reason": skip_reason(result)} if result.is_skipped else {}),
    )
    if num_supervised:
        judge(run, packs, result, loss)
    return f"loss {loss:.3f} · {num_tokens / step_s:,.0f} tok/s"


def forward_backward(run: Run, packs: Sequence[int], num_supervised: int) -> None:
    """Gather the gradient of this process's share of one step's packs.

    Raises: DataError if the masks of a pack do not hold the number of supervised tokens that divides the loss.
    """
    config, split = run.config, run.inputs.split
    last = num_rounds(len(packs), config.micro_batch_packs, run.ranks) - 1
    noise_seed = run.inputs.order.noise_seed(run.counts.num_steps) if config.neftune_alpha else None
    batches = shared_batches(split, packs, config.micro_batch_packs, run.ranks, run.cost_per_token, noise_seed)
    for number, batch in enumerate(run.pace.loading(batches)):
        run.beat(STEP)
        _require_mask(batch, split, run.config.shards)
        run.engine.forward_backward(batch, num_supervised, is_last=number == last)
        run.consumed += batch.packs


def settle(run: Run) -> None:
    """Tell each other, once per step: where everybody is, who is asked to stop, whose save is written, what was used.

    Raises: PeerError if not all processes are at the same step.
    """
    room = -(-run.config.batch_packs // run.ranks.size)
    used = [*run.consumed, *[NO_PACK] * (room - len(run.consumed))]
    state = (run.counts.num_steps, run.stop.reason() is not None, run.saver.status, *run.pace.take())
    told = run.ranks.gather([*state, *used])
    _require_same_step(told[:, 0])
    run.is_stop_agreed = bool(told[:, 1].any())
    packs = [int(pack) for pack in told[:, len(state) :].flatten() if pack != NO_PACK]
    if packs:
        run.ledger.add(run.counts.num_steps, packs)
    run.consumed = ()
    if run.ranks.size > 1 and run.step_s:
        for line in run.slow_ranks.add(own_seconds(run.step_s, told[:, 3], told[:, 4])):
            run.warn(line)
    if (told[:, 2] == WRITTEN).all():
        publish_if_possible(run)


def evaluate(run: Run) -> None:
    """Measure the held-out loss of every source; a wish to stop ends it without a result."""
    valid = run.inputs.valid
    if valid is None:
        return

    def advance(_: Batch) -> None:
        run.beat("eval")
        run.stop.in_agreement(run.ranks)

    run.beat("eval")
    try:
        losses = held_out_loss(
            run.engine.measure,
            valid,
            run.inputs.shards.documents,
            max_packs=run.config.evaluation.max_packs,
            micro_batch_packs=run.config.micro_batch_packs,
            ranks=run.ranks,
            advance=advance,
        )
    except StopRequested:
        run.is_stop_agreed = True  # the loop saves first
        return
    sources = {
        name: {"loss": it.loss, "perplexity": it.perplexity, "accuracy": it.accuracy, "tokens": it.num_tokens}
        for name, it in losses.items()
    }
    run.eval_loss = losses[ALL].loss
    run.tracker.log(metrics.EVAL, run.counts.num_steps, sources=sources)


def stop_if_asked(run: Run) -> None:
    """Save and leave if any process got a signal, found the STOP file or sees the end of the job's time.

    Raises: StopRequested, after everything is saved.
    """
    if not run.is_stop_agreed:
        return
    step = run.counts.num_steps
    reason = next(filter(None, run.ranks.gather_json(run.stop.reason())), "asked to stop")
    if step:
        save(run)
    run.tracker.log(metrics.STOP, step, reason=reason)
    if run.ranks.is_first:
        run.stop.clear_file()
    place = f"after step {step} of {run.inputs.order.num_steps}, which is saved" if step else "before the first step"
    raise StopRequested(
        f"{reason}: stopped {place}",
        on=run.folder.path,
        hint="run the same command again to go on from there",
    )


def _require_same_step(steps: NDArray[np.float64]) -> None:
    if len(set(steps)) > 1:
        raise PeerError(
            f"the processes are at different steps: {[int(step) for step in steps]}", hint="start them anew"
        )


def _require_mask(batch: Batch, split: Split, shards: str) -> None:
    expected = int(split.num_supervised_N[list(batch.packs)].sum())
    if batch.num_supervised != expected:
        raise DataError(
            f"packs {list(batch.packs)} hold {batch.num_supervised} supervised tokens, "
            f"their num_supervised says {expected}",
            on=shards,
            hint="build the shards again",
        )
