"""The training loop, read this first: batches, forward and backward, step, evaluate, save, stop if requested.

The parts of a run are made in setup.py and listed in run.py; the arithmetic of a step is behind engine/base.py. Every
process runs this file in the same order; `exchange_status` is what they exchange once per step.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sft.config.train import TrainConfig
from sft.console.progress import progress
from sft.data.batches.batch import Batch
from sft.errors import StopRequested
from sft.train.distributed.rank_batches import my_share, num_rounds, require_mask, shared_batches
from sft.train.distributed.ranks import connected
from sft.train.distributed.status import RankStatus
from sft.train.distributed.world import World, choose_device
from sft.train.engine.base import EMPTY_STEP, StepResult
from sft.train.held_out_loss import ALL, held_out_loss
from sft.train.inputs import read_inputs
from sft.train.lr_schedule import learning_rate
from sft.train.monitor import records
from sft.train.monitor.hang_limit import STEP
from sft.train.monitor.health import skip_reason
from sft.train.monitor.watchdog import Watchdog
from sft.train.run import Run, versions
from sft.train.run_folder import RunFolder
from sft.train.setup import pass_gate, start
from sft.train.stop import Clock, Stop, job_deadline


def train(
    config: TrainConfig,
    *,
    world: World | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Clock = time.monotonic,
    meeting_place: str = "env://",
) -> None:
    """Train until the last step, resuming from the newest whole checkpoint if the run folder has one.

    Raises: StopRequested once everything is saved, if a stop is requested; other SftErrors as in errors.py.
    """
    world = world or World.of(environ)
    device = choose_device(config.device, world.local_rank)
    stop = Stop(Path(config.out), job_deadline(environ, config.stop_margin_s, clock=clock), clock)
    with (
        stop.listening(),
        connected(world, device, timeout_s=config.distributed.timeout_s, init_method=meeting_place) as ranks,
        RunFolder.hold(Path(config.out), ranks) as folder,
        Watchdog(folder.path, world, config.hang) as watchdog,
    ):
        inputs = read_inputs(config, folder, ranks)
        if inputs.is_finished:
            if ranks.is_first:
                print(f"{folder.path}: finished already, the model is in {inputs.checkpoint}")
            return
        with start(config, inputs, ranks, device, stop, clock, watchdog) as run:
            run_to_end(run)


def run_to_end(run: Run) -> None:
    """Take steps until none is left, then save the result."""
    config, folder, num_steps = run.config, run.inputs.folder, run.num_steps
    run.record(records.START, num_steps=num_steps, versions=versions(), world=run.ranks.size)
    pass_gate(run)
    if run.step:
        run.say(f"{folder.path}: going on after step {run.step} of {num_steps}")
    exchange_status(run)
    if config.evaluation.at_start and not run.step:
        evaluate(run)
    with progress("training", num_steps, unit="steps", start=run.step, shown=run.ranks.is_first) as advance:
        while run.step < num_steps:
            stop_if_asked(run)
            with run.monitors.profiler.step(run.step + 1):
                remark = train_step(run)
            exchange_status(run)
            if run.is_due(config.evaluation.every_steps):
                evaluate(run)
            if run.is_due(config.checkpoint.every_steps):
                run.checkpointer.save_if_possible(run.state())
            advance(1, remark)
    checkpoint = run.checkpointer.save(run.state())
    run.say(f"trained {num_steps} steps; the model is in {checkpoint}, the metrics in {folder.metrics}")
    if remarks := run.monitors.health.summary:
        run.say(f"on the way: {remarks}")


def train_step(run: Run) -> str:
    """Take one optimizer step; returns a remark for the progress line."""
    run.monitors.stragglers.start_step()
    run.beat(STEP)
    packs = run.inputs.order.batch(run.step)
    lr = learning_rate(run.step, run.num_steps, run.config.optimizer)
    num_supervised = int(run.inputs.split.num_supervised_P[packs].sum())
    result = update(run, packs, num_supervised, lr)
    step_s = run.monitors.stragglers.end_step()
    num_tokens = int(run.inputs.num_tokens_P[packs].sum()) if num_supervised else 0
    run.monitors.health.add(result, num_tokens, num_supervised)
    loss = result.loss_sum / max(num_supervised, 1)
    outcome = {
        "loss": loss,
        "lr": lr,
        "grad_norm": result.grad_norm,
        "scale": result.scale,
        "skipped": result.is_skipped,
    }
    amount = {"tokens": num_tokens, "supervised_tokens": num_supervised, "tokens_per_s": num_tokens / step_s}
    reason = {"packs": packs, "reason": skip_reason(result)} if result.is_skipped else {}
    run.record(records.STEP, **outcome, **amount, step_s=step_s, epoch=run.epoch, **reason)
    if num_supervised:
        run.monitors.health.judge(packs, result, loss)
    return f"loss {loss:.3f} · {num_tokens / step_s:,.0f} tok/s"


def update(run: Run, packs: Sequence[int], num_supervised: int, lr: float) -> StepResult:
    """Compute the gradient of this process's share of a step's packs, then update with the sum over all processes.

    Raises: DataError if the masks of a pack do not hold the number of supervised tokens that divides the loss.
    """
    config, split, order, ledger = run.config, run.inputs.split, run.inputs.order, run.monitors.ledger
    if not num_supervised:
        run.warn("its packs hold no supervised token, the weights are unchanged")
        ledger.note(my_share(split, packs, run.ranks, run.cost_per_token))
        return EMPTY_STEP
    last = num_rounds(len(packs), config.micro_batch_packs, run.ranks) - 1
    noise_seed = order.noise_seed(run.step) if config.neftune_alpha else None
    batches = shared_batches(split, packs, config.micro_batch_packs, run.ranks, run.cost_per_token, noise_seed)
    for number, batch in enumerate(run.monitors.stragglers.loading(batches)):
        run.beat(STEP)
        require_mask(batch, split, config.shards)
        run.engine.forward_backward(batch, num_supervised, is_last=number == last)
        ledger.note(batch.packs)
    run.checkpointer.before_update()
    return run.engine.step(lr)


def exchange_status(run: Run) -> None:
    """Exchange, once per step: the step, requests to stop, whether the save is written, and the packs used.

    Raises: PeerError if not all processes are at the same step.
    """
    ledger, stragglers = run.monitors.ledger, run.monitors.stragglers
    mine = RankStatus(run.step, run.stop.is_asked, run.checkpointer.is_written, *stragglers.take(), ledger.take())
    everybody = mine.exchange(run.ranks, run.config.batch_packs)
    run.stop.agree(any(one.is_asked_to_stop for one in everybody))
    if packs := [pack for one in everybody for pack in one.packs]:
        ledger.add(run.step, packs)
    for line in stragglers.add([one.loading_s for one in everybody], [one.probe_s for one in everybody]):
        run.warn(line)
    if all(one.is_save_written for one in everybody):
        run.checkpointer.publish_if_possible()


def evaluate(run: Run) -> None:
    """Measure the held-out loss of every source; a request to stop ends it without a result."""
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
        return  # the loop saves first
    run.monitors.health.add_eval_loss(losses[ALL].loss)
    run.record(records.EVAL, sources={name: loss.as_record() for name, loss in losses.items()})


def stop_if_asked(run: Run) -> None:
    """Save and stop if any process received a signal, found the STOP file or reached the job's time limit.

    Raises: StopRequested, after everything is saved.
    """
    if not run.stop.is_agreed:
        return
    reason = next(filter(None, run.ranks.gather_json(run.stop.reason())), "asked to stop")
    if run.step:
        run.checkpointer.save(run.state())
    run.record(records.STOP, reason=reason)
    if run.ranks.is_first:
        run.stop.clear_file()
    place = f"after step {run.step} of {run.num_steps}, which is saved" if run.step else "before the first step"
    hint = "run the same command again to continue from there"
    raise StopRequested(f"{reason}: stopped {place}", on=run.inputs.folder.path, hint=hint)
