"""Saving while training continues: a thread of every process copies, writes and hashes; the first one publishes.

The copy is made while the next step's forward and backward pass run, since nothing changes a weight until that step's
update; the update waits for it. All the time that the training thread waits is reported as the stall.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sft.config.model import ModelConfig
from sft.errors import SftError
from sft.storage.atomic import staging_path, sync
from sft.storage.manifest import file_facts
from sft.train.checkpoint.store import checkpoint_path, open_staging, publish_staging
from sft.train.checkpoint.tensors import write_slices
from sft.train.distributed.ranks import RankGroup
from sft.train.engine.base import TensorSlice

IDLE, BUSY, WRITTEN = 0, 1, 2
"""Progress of the save of one process."""

WriteRest = Callable[[Path], list[Path]]
"""Writes the files of a checkpoint that are not tensors, and returns them; only the first process calls it."""


class AsyncWriter:
    """Writes checkpoints, one at a time."""

    def __init__(self, checkpoints: Path, ranks: RankGroup, shape: ModelConfig) -> None:
        self._checkpoints, self._ranks, self._shape = checkpoints, ranks, shape
        self._step, self._thread = 0, threading.Thread()
        self._is_copied = threading.Event()
        self._is_copied.set()
        self._files: dict[str, Any] = {}
        self._error: str | None = None
        self.stall_s = 0.0
        """Time that the training thread has waited for the save in progress."""

    @property
    def status(self) -> int:
        """IDLE, BUSY or WRITTEN."""
        return IDLE if not self._step else BUSY if self._thread.is_alive() else WRITTEN

    def begin(self, step: int, num_bytes: int, pieces: Iterable[TensorSlice], write_rest: WriteRest) -> None:
        """Start to save; every process calls it at the same step.

        Raises: StorageError on all of them if the checkpoint exists or the disk is too full.
        """
        started_s = time.monotonic()
        final = checkpoint_path(self._checkpoints, step)
        with self._ranks.raise_on_all():
            if self._ranks.is_first:
                open_staging(final, num_bytes)
        # Only a thread that finishes resets this error.
        self._step, self._files, self._error = step, {}, "its writer ended early, see the log"
        self._is_copied.clear()
        work = (list(pieces), staging_path(final), write_rest if self._ranks.is_first else None, _Moment())
        self._thread = threading.Thread(target=self._write, args=work, name="save", daemon=True)
        self._thread.start()
        self.stall_s = time.monotonic() - started_s

    def before_update(self) -> None:
        """Wait until the weights are copied, before they are changed."""
        if not self._is_copied.is_set():
            started_s = time.monotonic()
            self._is_copied.wait()
            self.stall_s += time.monotonic() - started_s

    def wait(self) -> None:
        """Wait until this process has written its part."""
        if self._step:
            self._thread.join()

    def publish(self) -> int:
        """Give the checkpoint its final name once every process has written its part; returns its step.

        Raises: StorageError on all processes if one of them could not write; nothing is left then.
        """
        step, self._step = self._step, IDLE
        final = checkpoint_path(self._checkpoints, step)
        told = self._ranks.gather_json({"files": self._files, "error": self._error})
        with self._ranks.raise_on_all():
            if self._ranks.is_first:
                errors = [part["error"] for part in told if part["error"]]
                files = {name: facts for part in told for name, facts in part["files"].items()}
                publish_staging(final, step, files, errors)
        return step

    def _write(self, pieces: list[TensorSlice], folder: Path, write_rest: WriteRest | None, now: "_Moment") -> None:
        try:
            with now.as_of_then():
                copies = [replace(piece, tensor=piece.tensor.to("cpu", copy=True)) for piece in pieces]
            self._is_copied.set()
            files = write_slices(copies, self._shape, folder, self._ranks.rank, self._ranks.size)
            if write_rest is not None:
                files += write_rest(folder)
            for path in files:
                sync(path)
            self._files = {path.relative_to(folder).as_posix(): file_facts(path) for path in files}
            self._error = None
        except (SftError, OSError, SafetensorError, RuntimeError) as error:  # safetensors and torch raise their own
            self._error = str(error)
        finally:
            self._is_copied.set()


class _Moment:
    """A point in the work of the current device; on the CPU all work is done by then."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._device = torch.cuda.current_device()
            self._event.record()

    @contextmanager
    def as_of_then(self) -> Iterator[None]:
        """Copies made in the block read the values of that point, and do not wait for work queued later."""
        if self._event is None:
            yield
            return
        # A new thread starts on device 0, whatever device this process uses.
        with torch.cuda.stream(torch.cuda.Stream(self._device)):  # type: ignore[no-untyped-call]
            self._event.wait()
            yield
