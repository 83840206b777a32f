"""Which checkpoints stay: the newest, the best, and one now and then for good."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from sft.config.train import TrainConfig
from sft.errors import StorageError
from sft.storage.manifest import MANIFEST
from sft.train.checkpoint.store import TRASH_PREFIX, State, published, step_of

log = logging.getLogger(__name__)


def retire(checkpoints: Path, config: TrainConfig) -> None:
    """Delete every checkpoint that there is no reason to keep; what cannot be deleted costs space, never the run."""
    whole = [folder for folder in published(checkpoints) if (folder / MANIFEST).is_file()]
    kept = set(kept_steps([(step_of(folder), _eval_loss(folder)) for folder in whole], config))
    for folder in whole:
        if step_of(folder) in kept:
            continue
        trash = folder.with_name(f"{TRASH_PREFIX}{folder.name}")
        try:
            folder.rename(trash)  # from now on nobody takes it for a checkpoint, however far the deletion gets
            shutil.rmtree(trash)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", folder, error)


def kept_steps(found: Sequence[tuple[int, float | None]], config: TrainConfig) -> list[int]:
    """The steps to keep of those found, each with its held-out loss if it was measured."""
    newest = sorted((step for step, _ in found), reverse=True)[: config.checkpoint.keep_last]
    measured = sorted((loss, step) for step, loss in found if loss is not None)
    best = [step for _, step in measured[: config.checkpoint.keep_best]]
    every = config.checkpoint.keep_every_steps
    return [*newest, *best, *(step for step, _ in found if every and step % every == 0)]


def _eval_loss(folder: Path) -> float | None:
    try:
        return State.read(folder).eval_loss
    except StorageError:  # its damage is told when somebody wants to load it
        return None
