"""The inputs of a run: shards, settings, and the newest whole checkpoint in its run folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft.config.train import TrainConfig
from sft.data.batches.sampler import Order
from sft.data.shards import Shards, Split
from sft.errors import ConfigError, StorageError
from sft.storage.manifest import MANIFEST
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import has_bad, newest_whole
from sft.train.distributed.ranks import RankGroup
from sft.train.fingerprint import Identity, identity
from sft.train.monitor.records import SAVE, Record, read_records
from sft.train.run_folder import RunFolder, require_same
from sft.train.run_layout import RunLayout
from sft.train.stop import Clock

LONGEST_DELAY_S = 60.0
"""How long a new folder may take to appear on another node of a network file system."""
POLL_S = 0.2


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, and its state at the newest checkpoint."""

    shards: Shards
    split: Split
    valid: Split | None
    """Present if the run measures held-out loss."""
    order: Order
    identity: Identity
    folder: RunLayout
    run_id: str = ""
    records: Sequence[Record] = ()
    """The metrics of earlier attempts."""
    checkpoint: Path | None = None
    """The state to resume from; None starts at step 0."""
    state: State | None = None

    @property
    def is_finished(self) -> bool:
        return self.state is not None and self.state.step >= self.order.num_steps

    @cached_property
    def num_tokens_P(self) -> NDArray[np.int64]:
        """Tokens of every pack, without padding."""
        _, lengths, counts = self.split.placed
        starts = np.cumsum(counts) - counts
        sums: NDArray[np.int64] = np.add.reduceat(lengths, starts, dtype=np.int64)
        return sums


def read_inputs(config: TrainConfig, folder: RunFolder, ranks: RankGroup) -> Inputs:
    """Open the shards, make sure that the folder holds this run, and find its newest whole checkpoint.

    Raises: ConfigError if the folder holds another run; StorageError if it had checkpoints and none is left.
    """
    with ranks.raise_on_all():
        inputs = open_inputs(config)
    with ranks.raise_on_all():
        # Only the first process reads the state of the folder and writes to it.
        found = _enter(config, folder, inputs.identity) if ranks.is_first else ("", None)
    run_id, checkpoint = ranks.broadcast(found)
    path = folder.checkpoints / checkpoint if checkpoint else None
    with ranks.raise_on_all():
        state = State.read(visible(path)) if path else None
        if state:
            require_same(state.identity, inputs.identity, folder.path)
    records = read_records(folder.metrics) if ranks.is_first else []
    return replace(inputs, run_id=run_id, records=records, checkpoint=path, state=state)


def open_inputs(config: TrainConfig) -> Inputs:
    """The shards of a run that has not started.

    Raises: ConfigError if there is nothing to train on, DataError if the shards are damaged.
    """
    shards = Shards.open(Path(config.shards))
    split = shards.split("train")
    order = Order.of(config, split)
    if order.num_steps < 1:
        raise ConfigError(f"epochs={config.epochs}: not one of {len(split)} packs to train on", on=config.shards)
    return Inputs(
        shards, split, _valid_split(config, shards), order, identity(config, shards), RunLayout(Path(config.out))
    )


def _enter(config: TrainConfig, folder: RunFolder, ident: Identity) -> tuple[str, str | None]:
    """The run's id and the name of its newest whole checkpoint."""
    run_id = folder.enter(config, ident)
    checkpoint = newest_whole(folder.checkpoints, set_aside=True)
    has_saved = any(record["kind"] == SAVE for record in read_records(folder.metrics))
    if checkpoint is None and (has_bad(folder.checkpoints) or has_saved):
        raise StorageError(
            "the run has saved before, but no whole checkpoint is left",
            on=folder.checkpoints,
            hint="restore one, or name another out to start from scratch",
        )
    return run_id, checkpoint.name if checkpoint else None


def _valid_split(config: TrainConfig, shards: Shards) -> Split | None:
    if not config.evaluation.every_steps:
        return None
    valid = shards.split("valid")
    if not len(valid):
        raise ConfigError(
            f"evaluation.every_steps={config.evaluation.every_steps}: the valid split is empty",
            on=config.shards,
            hint="build with valid_share above 0, or set evaluation.every_steps=0",
        )
    return valid


def visible(folder: Path, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> Path:
    """The folder, once this node can see it.

    Raises: StorageError if it does not appear in time.
    """
    deadline_s = clock() + LONGEST_DELAY_S
    while not (folder / MANIFEST).is_file():
        if clock() > deadline_s:
            raise StorageError(
                "another process of the run sees it, this one does not",
                on=folder,
                hint="put the run folder on a file system that all nodes share",
            )
        sleep(POLL_S)
    return folder
