"""Everything a run needs, made ready before the first step: what it reads, where it stands, what it works with."""

import logging
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch

from sft.config.train import TrainConfig
from sft.config.yaml_text import as_values
from sft.data.shards import TOKENIZER
from sft.model.compile import compile_blocks
from sft.model.hf_folder import read_config, stored_weights
from sft.model.objectives.next_token import NextToken
from sft.model.registry import meta_model
from sft.train.checkpoint.async_writer import Saver
from sft.train.checkpoint.initial_weights import StartingWeights, starting_shape
from sft.train.checkpoint.rng import random_state, restore_random_state
from sft.train.checkpoint.store import STATE, State
from sft.train.checkpoint.tensors import StoredSlices
from sft.train.distributed.ranks import RankGroup
from sft.train.engine.base import Engine
from sft.train.engine.deepspeed.engine import DeepSpeedEngine
from sft.train.engine.fsdp import make_mesh
from sft.train.engine.native import TorchEngine
from sft.train.engine.optimizer import trained
from sft.train.inputs import Inputs
from sft.train.monitor import metrics
from sft.train.monitor.hang_limit import STEP
from sft.train.monitor.health import Counts
from sft.train.monitor.ledger import Ledger
from sft.train.monitor.metrics import Tracker
from sft.train.monitor.pace import Pace
from sft.train.monitor.profiler import StepProfiler
from sft.train.monitor.stragglers import SlowRanks
from sft.train.monitor.watchdog import Watchdog
from sft.train.run_folder import RunFolder
from sft.train.stop import Clock, Stop
from sft.version import VERSION

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run in progress, as one of its processes sees it."""

    config: TrainConfig
    folder: RunFolder
    inputs: Inputs
    ranks: RankGroup
    engine: Engine
    saver: Saver
    tracker: Tracker
    ledger: Ledger
    stop: Stop
    counts: Counts
    clock: Clock
    watchdog: Watchdog
    pace: Pace
    slow_ranks: SlowRanks
    profiler: StepProfiler
    saved_step: int
    """Step of the newest checkpoint, 0 if there is none."""
    saving_step: int = 0
    """Step of the last save that was begun, and when."""
    save_started_s: float = 0.0
    num_failed_saves: int = 0
    """Saves in a row that the disk refused."""
    is_stop_agreed: bool = False
    """True once any process has a reason to stop."""
    consumed: tuple[int, ...] = ()
    """Packs that this process has computed in the last step."""
    step_s: float = 0.0
    """How long the last step took."""
    eval_loss: float | None = None
    """Held-out loss of the last step, if it was measured."""

    @property
    def is_finished(self) -> bool:
        return self.counts.num_steps >= self.inputs.order.num_steps

    @property
    def position(self) -> int:
        """Packs consumed, repeats of later epochs counted."""
        return min(self.counts.num_steps * self.config.batch_packs, self.inputs.order.num_samples)

    @property
    def epoch(self) -> float:
        """Passes over the training split so far."""
        return self.position / len(self.inputs.split)

    @cached_property
    def cost_per_token(self) -> float:
        """What the linear layers cost for a token, in pairs of tokens that attend to each other."""
        model = self.engine.model
        return model.flops_per_token / model.flops_per_pair

    def is_due(self, every_steps: int) -> bool:
        """True after every `every_steps` steps and after the last one; 0 is never."""
        return every_steps > 0 and (self.counts.num_steps % every_steps == 0 or self.is_finished)

    def beat(self, phase: str) -> None:
        """Tell the watchdog that this process lives, and what it does."""
        self.watchdog.beat(phase, self.counts.num_steps + (phase == STEP))

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.ranks.is_first:
            print(text)

    def warn(self, text: str) -> None:
        """Log a warning about the step in progress, once for all processes."""
        if self.ranks.is_first:
            log.warning("step %d: %s", self.counts.num_steps + 1, text)

    def rest_of_checkpoint(self) -> Callable[[Path], list[Path]]:
        """Writes what a checkpoint of this moment holds besides tensors, whenever it is called."""
        manifest, tokenizer = self.inputs.shards.manifest, self.inputs.shards.tokenizer_path
        state = State(
            step=self.counts.num_steps,
            position=self.position,
            epoch=self.epoch,
            counts=replace(self.counts),
            identity=self.inputs.identity,
            config=as_values(self.config),
            shards=manifest.as_training_data(),
            engine=self.engine.state(),
            ledger=self.ledger.digest,
            eval_loss=self.eval_loss,
            rng=random_state(),
            versions=versions(),
        )

        def write(folder: Path) -> list[Path]:
            shutil.copyfile(tokenizer, folder / TOKENIZER)
            state.write(folder)
            return [folder / TOKENIZER, folder / STATE]

        return write


def versions() -> dict[str, str]:
    """Versions of what decides the bits of a run."""
    packages = ("torch", "safetensors", "numpy", "pyarrow")
    return {"sft": VERSION, "python": platform.python_version(), **{name: version(name) for name in packages}}


@contextmanager
def start(
    config: TrainConfig,
    inputs: Inputs,
    folder: RunFolder,
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
    step = state.step if state else 0
    if state:
        restore_random_state(state.rng)
    elif inputs.records:
        log.warning("%s: ended before its first checkpoint, starting from step 0 again", folder.path)
    counts = replace(state.counts) if state else Counts()
    pace, slow_ranks = Pace(device, clock), SlowRanks(ranks.gather_json(platform.node()))
    saver = Saver(folder.checkpoints, ranks, engine.model.config)
    with ExitStack() as opened:
        with ranks.raise_on_all():
            tracker, ledger = _records(config, inputs, folder) if ranks.is_first else (metrics.Tracker([], 0), Ledger())
        opened.callback(tracker.close)
        opened.callback(saver.wait)
        profiler = StepProfiler(folder.path, ranks.rank, config.profiler.start_step, config.profiler.steps)
        opened.callback(profiler.close)
        yield Run(
            config,
            folder,
            inputs,
            ranks,
            engine,
            saver,
            tracker,
            ledger,
            stop,
            counts,
            clock,
            watchdog,
            pace,
            slow_ranks,
            profiler,
            saved_step=step,
        )


def _records(config: TrainConfig, inputs: Inputs, folder: RunFolder) -> tuple[Tracker, Ledger]:
    """What the first process writes for all, rid of the steps that will be taken again."""
    step = inputs.state.step if inputs.state else 0
    metrics.supersede(folder.metrics, inputs.records, step)
    ledger = Ledger(folder.ledger, step)
    if inputs.state and ledger.digest != inputs.state.ledger:
        log.warning("%s is not the ledger that %s was saved with", folder.ledger, inputs.checkpoint)
    return metrics.open_tracker(config, folder.metrics, inputs.records, inputs.run_id, step=step), ledger


def make_engine(config: TrainConfig, inputs: Inputs, ranks: RankGroup, device: torch.device) -> Engine:
    """The engine that the run asks for, where its newest checkpoint has left it or with its first weights."""
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
