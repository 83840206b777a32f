"""The lifecycle of a save: start, wait, publish, delete old ones; the same decisions on every process.

An occasional write error costs a checkpoint; several in a row end the run.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from sft.config.train import CheckpointConfig
from sft.data.shards import TOKENIZER
from sft.errors import StorageError
from sft.storage.manifest import MANIFEST
from sft.train.checkpoint.async_writer import IDLE, WRITTEN, AsyncWriter, WriteRest
from sft.train.checkpoint.replica_check import require_equal_replicas
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import TRASH_PREFIX, checkpoint_path, published, step_of
from sft.train.distributed.ranks import RankGroup
from sft.train.engine.base import Engine
from sft.train.monitor.ledger import Ledger
from sft.train.monitor.metrics import Tracker
from sft.train.monitor.records import SAVE
from sft.train.monitor.watchdog import Watchdog
from sft.train.run_layout import STATE_FILE

MAX_FAILED_SAVES = 3

log = logging.getLogger(__name__)


class Checkpointer:
    """Saves a run, one checkpoint at a time, and keeps those that its config asks for."""

    def __init__(
        self,
        checkpoints: Path,
        config: CheckpointConfig,
        engine: Engine,
        ranks: RankGroup,
        *,
        tokenizer: Path,
        tracker: Tracker,
        ledger: Ledger,
        watchdog: Watchdog,
        clock: Callable[[], float],
        saved_step: int,
    ) -> None:
        self._checkpoints, self._config, self._tokenizer = checkpoints, config, tokenizer
        self._engine, self._ranks, self._clock = engine, ranks, clock
        self._tracker, self._ledger, self._watchdog = tracker, ledger, watchdog
        self._writer = AsyncWriter(checkpoints, ranks, engine.model.config)
        self._saved_step = saved_step
        """Step of the newest checkpoint, 0 if there is none."""
        self._saving_step, self._started_s = saved_step, 0.0
        """Step and time of the last save that was started."""
        self._num_failed = 0
        """Consecutive saves that failed."""

    @property
    def is_written(self) -> bool:
        """True if this process has written its part of the save in progress."""
        return self._writer.status == WRITTEN

    def save(self, state: State) -> Path:
        """Save the last step, unless that is done, and wait for it.

        Raises: StorageError if it cannot be written.
        """
        self._begin(state)
        if self._writer.status != IDLE:
            self._publish()
        return checkpoint_path(self._checkpoints, state.step)

    def save_if_possible(self, state: State) -> None:
        """Start to save; an occasional write error costs only the checkpoint.

        Raises: StorageError if several saves in a row fail.
        """
        try:
            self._begin(state)
            if not self._config.async_save:
                self._publish()
        except StorageError as error:
            self._count_failure(error)

    def publish_if_possible(self) -> None:
        """Publish a save that every process has written; drop it if a process could not write its part.

        Raises: StorageError if that happens several times in a row.
        """
        try:
            self._publish()
        except StorageError as error:
            self._count_failure(error)

    def before_update(self) -> None:
        """Wait until the weights are copied, before they are changed."""
        self._writer.before_update()

    def wait(self) -> None:
        """Wait until this process has written its part of the save in progress, if there is one."""
        self._writer.wait()

    def _begin(self, state: State) -> None:
        """Start to save the last step, unless that is done; an earlier save is finished first."""
        if self._writer.status != IDLE:
            self.publish_if_possible()
        if self._saved_step == state.step:
            return
        self._watchdog.beat("save", state.step)
        self._saving_step, self._started_s = state.step, self._clock()
        require_equal_replicas(self._engine, self._ranks)
        self._tracker.sync()  # before a checkpoint that counts on these records
        with self._ranks.raise_on_all():
            self._ledger.sync()  # only on the first process
        rest, num_bytes = self._rest(state), self._engine.checkpoint_bytes
        self._writer.begin(state.step, num_bytes, self._engine.slices(), rest)

    def _rest(self, state: State) -> WriteRest:
        """A function that writes the part of a checkpoint of this step that is not tensors."""

        def write(folder: Path) -> list[Path]:
            shutil.copyfile(self._tokenizer, folder / TOKENIZER)
            state.write(folder)
            return [folder / TOKENIZER, folder / STATE_FILE]

        return write

    def _publish(self) -> None:
        """Wait for the save in progress, give it its final name and delete old ones."""
        self._watchdog.beat("save", self._saving_step)
        self._writer.wait()
        self._saved_step, self._num_failed = self._writer.publish(), 0
        save_s = self._clock() - self._started_s
        self._tracker.log(SAVE, self._saved_step, save_s=save_s, stall_s=self._writer.stall_s)
        if self._ranks.is_first:
            retire(self._checkpoints, self._config)

    def _count_failure(self, error: StorageError) -> None:
        self._num_failed += 1
        if self._num_failed == MAX_FAILED_SAVES:
            raise error
        if self._ranks.is_first:
            log.warning("step %d was not saved, training continues: %s", self._saving_step, error)


def retire(checkpoints: Path, config: CheckpointConfig) -> None:
    """Delete every checkpoint that the config does not keep; one that cannot be deleted only costs space."""
    whole = [folder for folder in published(checkpoints) if (folder / MANIFEST).is_file()]
    kept = set(kept_steps([(step_of(folder), _eval_loss(folder)) for folder in whole], config))
    for folder in whole:
        if step_of(folder) in kept:
            continue
        trash = folder.with_name(f"{TRASH_PREFIX}{folder.name}")
        try:
            folder.rename(trash)  # no longer a checkpoint, even if the deletion stops halfway
            shutil.rmtree(trash)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", folder, error)


def kept_steps(found: Sequence[tuple[int, float | None]], config: CheckpointConfig) -> list[int]:
    """The steps to keep of those found, each with its held-out loss if it was measured."""
    newest = sorted((step for step, _ in found), reverse=True)[: config.keep_last]
    measured = sorted((loss, step) for step, loss in found if loss is not None)
    best = [step for _, step in measured[: config.keep_best]]
    every = config.keep_every_steps
    return [*newest, *best, *(step for step, _ in found if every and step % every == 0)]


def _eval_loss(folder: Path) -> float | None:
    try:
        return State.read(folder).eval_loss
    except StorageError:  # the damage is reported when it is loaded
        return None
