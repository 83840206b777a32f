"""What a run reports: metrics.jsonl always, Weights & Biases and TensorBoard if switched on."""

import errno
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from sft.config.train import TrainConfig
from sft.redact import error_text
from sft.train.monitor.records import START, Record, as_json
from sft.train.monitor.tensorboard import TensorBoardSink, installed_writer
from sft.train.monitor.wandb import WandbSink, installed_wandb
from sft.train.run_layout import RunLayout

log = logging.getLogger(__name__)


class Sink(Protocol):
    """A destination for records."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def sync(self) -> None:
        """Make all records so far survive a power cut."""

    def close(self) -> None:
        """Close the sink; no record follows."""


class Tracker:
    """Sends every record, marked with the number of this attempt, to all sinks."""

    def __init__(self, sinks: Sequence[Sink], attempt: int) -> None:
        self._sinks, self.attempt = sinks, attempt

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Report something about the run after `step` optimizer steps; numbers that are not finite become text."""
        record = as_json({"kind": kind, "step": step, "attempt": self.attempt, **values})
        for sink in self._sinks:
            sink.write(record)

    def sync(self) -> None:
        """Make everything logged so far survive a power cut."""
        for sink in self._sinks:
            sink.sync()

    def close(self) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.close()


class MetricsFile:
    """One JSON object per line; a failed write costs records, never the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("ab", buffering=0)
        self._is_torn = False

    def write(self, record: Record) -> None:
        # After a failed write the file may end in half a line, which must not swallow the next one.
        line = ("\n" if self._is_torn else "") + json.dumps(record, allow_nan=False) + "\n"
        try:
            if self._stream.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, "only part of a line was taken")
            self._is_torn = False
        except OSError as error:
            if not self._is_torn:
                log.warning("%s cannot be written, records are lost: %s", self._path, error)
            self._is_torn = True

    def sync(self) -> None:
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            log.warning("%s cannot be synced: %s", self._path, error)

    def close(self) -> None:
        self._stream.close()


class Guarded:
    """A sink whose failure costs its own records and one warning, never the run."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name, self._sink = name, None
        self._sink = self._tried(make)

    def write(self, record: Record) -> None:
        self._do(lambda sink: sink.write(record))

    def sync(self) -> None:
        self._do(lambda sink: sink.sync())

    def close(self) -> None:
        self._do(lambda sink: sink.close())

    def _do(self, act: Callable[[Sink], None]) -> None:
        sink = self._sink
        if sink is not None:
            self._tried(lambda: act(sink))

    def _tried(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # noqa: BLE001 - trackers raise more than they document
            self._sink = None
            log.warning("%s takes no more records, metrics.jsonl does: %s", self._name, error_text(error, os.environ))


def open_tracker(config: TrainConfig, path: Path, records: Sequence[Record], run_id: str, *, step: int = 0) -> Tracker:
    """A tracker for the next attempt, which continues after `step`, of the run with these earlier records.

    Raises: ConfigError if a tracker is switched on that is not installed.
    """
    attempt = 1 + max((record.get("attempt", 0) for record in records), default=0)
    starts = {str(record["attempt"]): record["step"] for record in records if record["kind"] == START}
    sinks: list[Sink] = [MetricsFile(path)]
    if config.wandb.enabled:
        wandb, attempts = installed_wandb(), {**starts, str(attempt): step}
        sinks.append(Guarded("wandb", lambda: WandbSink(wandb, config, run_id, attempts)))
    if config.tensorboard:
        writer, folder = installed_writer(), RunLayout(path.parent).tensorboard
        sinks.append(Guarded("TensorBoard", lambda: TensorBoardSink(writer, folder, step)))
    return Tracker(sinks, attempt)
