"""Checkpoints for tests, published as a run does it."""

from collections.abc import Callable
from pathlib import Path

from sft.storage.manifest import file_facts
from sft.train.checkpoint.store import checkpoint_path, open_staging, publish_staging


def publish(checkpoints: Path, step: int, write: Callable[[Path], object]) -> Path:
    """The checkpoint of the files that `write` puts into a folder."""
    final = checkpoint_path(checkpoints, step)
    folder = open_staging(final, 0)
    write(folder)
    publish_staging(final, step, {path.name: file_facts(path) for path in folder.iterdir()}, [])
    return final
