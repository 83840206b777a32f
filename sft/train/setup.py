"""Sets up a run before its first step: the engine with its weights, and the parts around it."""

import logging
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from sft.config.train import TrainConfig
from sft.model.compile import compile_blocks
from sft.model.hf_folder import read_config, stored_weights
from sft.model.objectives.next_token import NextToken
from sft.model.registry import meta_model
from sft.train.checkpoint.checkpointer import Checkpointer
from sft.train.checkpoint.initial_weights import StartingWeights, starting_shape
from sft.train.checkpoint.rng import restore_random_state
from sft.train.checkpoint.tensors import StoredSlices
from sft.train.distributed.ranks import RankGroup
from sft.train.engine.base import Engine
from sft.train.engine.deepspeed.engine import DeepSpeedEngine
from sft.train.engine.fsdp import make_mesh
from sft.train.engine.native import TorchEngine
from sft.train.engine.optimizer import trained
from sft.train.inputs import Inputs
from sft.train.monitor.counts import Counts
from sft.train.monitor.health import HealthMonitor
from sft.train.monitor.ledger import Ledger
from sft.train.monitor.metrics import Tracker, open_tracker
from sft.train.monitor.profiler import StepProfiler
from sft.train.monitor.records import GATE, supersede
from sft.train.monitor.stragglers import StragglerMonitor
from sft.train.monitor.watchdog import Watchdog
from sft.train.numerics.gate import kernel_name, pick, require_exact
from sft.train.run import Monitors, Run
from sft.train.stop import Clock, Stop

log = logging.getLogger(__name__)


@contextmanager
def start(
    config: TrainConfig,
    inputs: Inputs,
    ranks: RankGroup,
    device: torch.device,
    stop: Stop,
    clock: Clock,
    watchdog: Watchdog,
) -> Iterator[Run]:
    """The run with its weights loaded and its metrics open."""
    torch.manual_seed(config.seed)
    with ranks.raise_on_all():
        engine = make_engine(config, inputs, ranks, device)
    state = inputs.state
    if state:
        restore_random_state(state.rng)
    elif inputs.records:
        log.warning("%s: ended before its first checkpoint, starting from step 0 again", inputs.folder.path)
    with ExitStack() as opened:
        monitors = _monitors(config, inputs, ranks, device, clock, watchdog, opened)
        checkpointer = Checkpointer(
            inputs.folder.checkpoints,
            config.checkpoint,
            engine,
            ranks,
            tokenizer=inputs.shards.tokenizer_path,
            tracker=monitors.tracker,
            ledger=monitors.ledger,
            watchdog=watchdog,
            clock=clock,
            saved_step=state.step if state else 0,
        )
        opened.callback(checkpointer.wait)
        opened.callback(monitors.profiler.close)
        yield Run(config, inputs, ranks, engine, checkpointer, monitors, stop)


def pass_gate(run: Run) -> None:
    """Check on a pack of the next step that kernel and precision compute correctly; see gate.py.

    Raises: NumericsError if they do not.
    """
    if not run.config.health.numerics_gate:
        return
    run.beat("gate")
    model, split, precision = run.engine.model, run.inputs.split, run.config.precision
    index = pick(split, run.inputs.order.batch(run.step))
    name = f"train pack {index} of {run.config.shards}"
    checks = require_exact(
        run.engine.measure, model, split[index], precision, run.ranks, name, is_shared=run.engine.is_shared
    )
    measured = {check.what: check.measured for check in checks}
    run.record(GATE, pack=index, kernel=kernel_name(model, precision), checks=measured)


def make_engine(config: TrainConfig, inputs: Inputs, ranks: RankGroup, device: torch.device) -> Engine:
    """The engine of the config, restored from the newest checkpoint or with the starting weights."""
    shards, checkpoint, state = inputs.shards, inputs.checkpoint, inputs.state
    shape = read_config(checkpoint) if checkpoint else starting_shape(config.model, shards)
    model = meta_model(shape, config.lora, config.activation_checkpointing)
    if config.compile:
        compile_blocks(model)
    engine: Engine
    if config.engine == "deepspeed":
        engine = DeepSpeedEngine(NextToken(model), config, device)
    else:
        mesh = make_mesh(device, ranks.size, config.fsdp.shard_size) if ranks.size > 1 else None
        engine = TorchEngine(NextToken(model), config, device, mesh)
    if checkpoint and state:
        weights = stored_weights(checkpoint, shape, config.lora)
        engine.restore(StoredSlices(checkpoint, weights, trained(model)), state.engine)
    else:
        engine.load(StartingWeights(config.model, shape, config.seed, config.lora))
    return engine


def _monitors(
    config: TrainConfig,
    inputs: Inputs,
    ranks: RankGroup,
    device: torch.device,
    clock: Clock,
    watchdog: Watchdog,
    opened: ExitStack,
) -> Monitors:
    """The parts that monitor the run, with their counts from earlier attempts."""
    stragglers = StragglerMonitor(device, ranks.gather_json(platform.node()), clock)
    with ranks.raise_on_all():
        tracker, ledger = _files(config, inputs) if ranks.is_first else (Tracker([], 0), Ledger())
    opened.callback(tracker.close)
    health = HealthMonitor(
        config.health,
        inputs.folder,
        inputs.shards,
        inputs.split,
        tracker,
        counts=replace(inputs.state.counts) if inputs.state else Counts(),
        is_first=ranks.is_first,
    )
    profiler = StepProfiler(inputs.folder.path, ranks.rank, config.profiler.start_step, config.profiler.steps)
    return Monitors(tracker, ledger, health, stragglers, watchdog, profiler)


def _files(config: TrainConfig, inputs: Inputs) -> tuple[Tracker, Ledger]:
    """The files that only the first process writes, without the steps that will be repeated."""
    folder, step = inputs.folder, inputs.state.step if inputs.state else 0
    supersede(folder.metrics, inputs.records, step)
    ledger = Ledger(folder.ledger, step)
    if inputs.state and ledger.digest != inputs.state.ledger:
        log.warning("%s is not the ledger that %s was saved with", folder.ledger, inputs.checkpoint)
    return open_tracker(config, folder.metrics, inputs.records, inputs.run_id, step=step), ledger
