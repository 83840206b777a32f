"""When a run saves, and what happens if it cannot: the decisions around save.py, the same on every process."""

import logging
from pathlib import Path

from sft.errors import StorageError
from sft.train.checkpoint.async_writer import IDLE
from sft.train.checkpoint.replica_check import require_equal_replicas
from sft.train.checkpoint.retention import retire
from sft.train.checkpoint.store import checkpoint_path
from sft.train.monitor import metrics
from sft.train.run import Run

MAX_FAILED_SAVES = 3

log = logging.getLogger(__name__)


def save_if_possible(run: Run) -> None:
    """Begin to save, but let a disk that refuses now and then cost no more than the checkpoint.

    Raises: StorageError if it refuses several times in a row.
    """
    try:
        begin(run)
        if not run.config.checkpoint.async_save:
            publish(run)
    except StorageError as error:
        _count_failure(run, error)


def publish_if_possible(run: Run) -> None:
    """Publish the save that every process has written; one that a process could not write is given up.

    Raises: StorageError if that happens several times in a row.
    """
    try:
        publish(run)
    except StorageError as error:
        _count_failure(run, error)


def save(run: Run) -> Path:
    """Have a checkpoint of the last step, unless there is one, and wait for it.

    Raises: StorageError if the disk refuses.
    """
    begin(run)
    if run.saver.status != IDLE:
        publish(run)
    return checkpoint_path(run.folder.checkpoints, run.counts.num_steps)


def begin(run: Run) -> None:
    """Begin to save the last step, unless that was done; an earlier save is finished first."""
    step = run.counts.num_steps
    if run.saver.status != IDLE:
        publish_if_possible(run)
    if run.saved_step == step:
        return
    run.beat("save")
    run.saving_step, run.save_started_s = step, run.clock()
    require_equal_replicas(run.engine, run.ranks)
    run.tracker.sync()  # before a checkpoint can say that these records exist
    with run.ranks.raise_on_all():
        run.ledger.sync()  # by the first process alone
    run.saver.begin(step, run.engine.checkpoint_bytes, run.engine.slices(), run.rest_of_checkpoint())


def publish(run: Run) -> None:
    """Wait for the save in progress, give it its final name and retire old ones."""
    run.beat("save")
    run.saver.wait()
    step = run.saver.publish()
    run.saved_step, run.num_failed_saves = step, 0
    save_s = run.clock() - run.save_started_s
    run.tracker.log(metrics.SAVE, step, save_s=save_s, stall_s=run.saver.stall_s)
    if run.ranks.is_first:
        retire(run.folder.checkpoints, run.config)


def _count_failure(run: Run, error: StorageError) -> None:
    run.num_failed_saves += 1
    if run.num_failed_saves == MAX_FAILED_SAVES:
        raise error
    if run.ranks.is_first:
        log.warning("step %d was not saved, going on: %s", run.saving_step, error)
