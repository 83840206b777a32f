"""Everything a run needs, made ready before the first step: what it reads, where it stands, what it works with."""

import logging
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from sft.config import TrainConfig
from sft.data.order import Order
from sft.data.shards import TOKENIZER, Shards, Split
from sft.errors import ConfigError, StorageError
from sft.model.huggingface import read_config
from sft.model.neox import NeoX, build
from sft.settings import as_values
from sft.train import track
from sft.train.checkpoint import State, has_bad, newest_whole
from sft.train.engine.base import Engine
from sft.train.engine.torch import TorchEngine
from sft.train.folder import RunFolder, require_same
from sft.train.health import Counts
from sft.train.identity import Identity, identity
from sft.train.random_state import random_state, restore_random_state
from sft.train.stop import Clock, Stop
from sft.train.track import Record, Tracker
from sft.train.weights import starting_model, starting_shape
from sft.train.world import World, choose_device
from sft.version import VERSION

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a run reads, and how far it has come."""

    shards: Shards
    split: Split
    valid: Split | None
    """Present if the run measures held-out loss."""
    order: Order
    identity: Identity
    run_id: str
    records: list[Record]
    """The metrics of earlier attempts."""
    checkpoint: Path | None
    """Where to go on from; None starts at step 0."""
    state: State | None

    @property
    def is_finished(self) -> bool:
        return self.state is not None and self.state.step >= self.order.num_steps


@dataclass
class Run:
    """A run in progress."""

    config: TrainConfig
    folder: RunFolder
    inputs: Inputs
    engine: Engine
    tracker: Tracker
    stop: Stop
    counts: Counts
    clock: Clock
    saved_step: int
    """Step of the newest checkpoint, 0 if there is none."""
    num_failed_saves: int = 0
    """Saves in a row that the disk refused."""

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

    def is_due(self, every_steps: int) -> bool:
        """True after every `every_steps` steps and after the last one; 0 is never."""
        return every_steps > 0 and (self.counts.num_steps % every_steps == 0 or self.is_finished)

    def write_checkpoint(self, folder: Path) -> None:
        """Put everything that a checkpoint holds into the folder, except its manifest."""
        manifest = self.inputs.shards.manifest
        engine_state = self.engine.save(folder)
        shutil.copyfile(self.inputs.shards.tokenizer_path, folder / TOKENIZER)
        State(
            step=self.counts.num_steps,
            position=self.position,
            epoch=self.epoch,
            counts=self.counts,
            identity=self.inputs.identity,
            config=as_values(self.config),
            shards={key: manifest.get(key) for key in ("name", "content_digest", "sources", "tokenizer")},
            engine=engine_state,
            rng=random_state(),
            versions=versions(),
        ).write(folder)


def versions() -> dict[str, str]:
    """Versions of what decides the bits of a run."""
    packages = ("torch", "safetensors", "numpy", "pyarrow")
    return {"sft": VERSION, "python": platform.python_version(), **{name: version(name) for name in packages}}


def read_inputs(config: TrainConfig, folder: RunFolder) -> Inputs:
    """Open the shards, make sure that the folder holds this run, and find its newest whole checkpoint.

    Raises: ConfigError if the folder's run is another one; StorageError if it had checkpoints and none is left.
    """
    shards = Shards.open(Path(config.shards))
    split = shards.split("train")
    order = Order(len(split), config.batch_packs, config.epochs, config.seed, config.max_steps)
    if order.num_steps < 1:
        raise ConfigError(f"epochs={config.epochs}: not one of {len(split)} packs to train on", on=config.shards)
    valid = _valid_split(config, shards)
    ident = identity(config, shards)
    run_id = folder.enter(config, ident)
    records = track.read_records(folder.metrics)
    checkpoint = newest_whole(folder.checkpoints)
    state = State.read(checkpoint) if checkpoint else None
    if state:
        require_same(state.identity, ident, folder.path)
    elif has_bad(folder.checkpoints) or any(record["kind"] == track.SAVE for record in records):
        raise StorageError(
            "the run has saved before, but no whole checkpoint is left",
            on=folder.checkpoints,
            hint="restore one, or name another out to start from scratch",
        )
    return Inputs(shards, split, valid, order, ident, run_id, records, checkpoint, state)


@contextmanager
def start(
    config: TrainConfig, inputs: Inputs, folder: RunFolder, world: World, stop: Stop, clock: Clock
) -> Iterator[Run]:
    """The run with its weights loaded and its metrics open."""
    torch.manual_seed(config.seed)
    engine = _engine(config, inputs, world)
    state = inputs.state
    step = state.step if state else 0
    if state and inputs.checkpoint:
        engine.restore(inputs.checkpoint, state.engine)
        restore_random_state(state.rng)
    elif inputs.records:
        log.warning("%s: ended before its first checkpoint, starting from step 0 again", folder.path)
    track.supersede(folder.metrics, inputs.records, step)
    tracker = track.open_tracker(config, folder.metrics, inputs.records, inputs.run_id)
    counts = state.counts if state else Counts()
    try:
        yield Run(config, folder, inputs, engine, tracker, stop, counts, clock, saved_step=step)
    finally:
        tracker.close()


def _valid_split(config: TrainConfig, shards: Shards) -> Split | None:
    if not config.eval_every_steps:
        return None
    valid = shards.split("valid")
    if not len(valid):
        raise ConfigError(
            f"eval_every_steps={config.eval_every_steps}: the valid split is empty",
            on=config.shards,
            hint="build with valid_share above 0, or set eval_every_steps=0",
        )
    return valid


def _engine(config: TrainConfig, inputs: Inputs, world: World) -> Engine:
    if world.size > 1:
        raise ConfigError(
            f"engine={config.engine} runs in one process only, WORLD_SIZE is {world.size}",
            hint="start one process, without torchrun",
        )
    model = _model(config, inputs)
    model.activation_checkpointing = config.activation_checkpointing
    return TorchEngine(model, config)


def _model(config: TrainConfig, inputs: Inputs) -> NeoX:
    device = choose_device(config.device)
    if inputs.checkpoint:
        return build(read_config(inputs.checkpoint), device)  # the engine loads the weights
    return starting_model(config.model, starting_shape(config.model, inputs.shards), config.seed, device)
