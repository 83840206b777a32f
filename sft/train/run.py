"""A run in progress: its parts, and the progress that they show."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sft.config.train import TrainConfig
from sft.config.yaml_text import as_values
from sft.train.checkpoint.checkpointer import Checkpointer
from sft.train.checkpoint.rng import random_state
from sft.train.checkpoint.state import State
from sft.train.distributed.ranks import RankGroup
from sft.train.engine.base import Engine
from sft.train.inputs import Inputs
from sft.train.monitor.hang_limit import STEP
from sft.train.monitor.health import HealthMonitor
from sft.train.monitor.ledger import Ledger
from sft.train.monitor.metrics import Tracker
from sft.train.monitor.profiler import StepProfiler
from sft.train.monitor.stragglers import StragglerMonitor
from sft.train.monitor.watchdog import Watchdog
from sft.train.stop import Stop
from sft.version import VERSION, versions_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Monitors:
    """The parts that monitor a run and record what happens."""

    tracker: Tracker
    ledger: Ledger
    health: HealthMonitor
    stragglers: StragglerMonitor
    watchdog: Watchdog
    profiler: StepProfiler


@dataclass(frozen=True)
class Run:
    """A run in progress, in one of its processes; all mutable state is inside the parts, and only they change it."""

    config: TrainConfig
    inputs: Inputs
    ranks: RankGroup
    engine: Engine
    checkpointer: Checkpointer
    monitors: Monitors
    stop: Stop

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.monitors.health.counts.num_steps

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.inputs.order.num_steps

    @property
    def position(self) -> int:
        """Packs consumed, repeats in later epochs included."""
        return min(self.step * self.config.batch_packs, self.inputs.order.num_samples)

    @property
    def epoch(self) -> float:
        """Passes over the training split so far."""
        return self.position / len(self.inputs.split)

    @cached_property
    def cost_per_token(self) -> float:
        """Cost of the linear layers per token, in units of one pair of tokens that attend to each other."""
        model = self.engine.model
        return model.flops_per_token / model.flops_per_pair

    def is_due(self, every_steps: int) -> bool:
        """True after every `every_steps` steps and after the last one; 0 is never."""
        return every_steps > 0 and (self.step % every_steps == 0 or self.step == self.num_steps)

    def beat(self, phase: str) -> None:
        """Report to the watchdog that this process makes progress, and in which phase."""
        self.monitors.watchdog.beat(phase, self.step + (phase == STEP))

    def record(self, kind: str, **values: Any) -> None:
        """Report something about the run after the steps done so far."""
        self.monitors.tracker.log(kind, self.step, **values)

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.ranks.is_first:
            print(text)

    def warn(self, text: str) -> None:
        """Log a warning about the step in progress, once for all processes."""
        if self.ranks.is_first:
            log.warning("step %d: %s", self.step + 1, text)

    def state(self) -> State:
        """The part of a checkpoint of this step that is not tensors."""
        manifest, health = self.inputs.shards.manifest, self.monitors.health
        return State(
            step=self.step,
            position=self.position,
            epoch=self.epoch,
            counts=replace(health.counts),
            identity=self.inputs.identity,
            config=as_values(self.config),
            shards=manifest.as_training_data(),
            engine=self.engine.state(),
            ledger=self.monitors.ledger.digest,
            eval_loss=health.eval_loss,
            rng=random_state(),
            versions=versions(),
        )


def versions() -> dict[str, str]:
    """Versions of the packages that the exact numbers of a run depend on."""
    return {"sft": VERSION, **versions_of("torch", "safetensors", "numpy", "pyarrow")}
