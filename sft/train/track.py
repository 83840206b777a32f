"""What a run reports: metrics.jsonl always, Weights & Biases if switched on. The only file that imports wandb."""

import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from sft.config import TrainConfig
from sft.errors import ConfigError
from sft.settings import as_values
from sft.storage.publish import write_text

Record = dict[str, Any]
STEP, EVAL, SAVE, START, STOP = "step", "eval", "save", "start", "stop"
SCALE, SPIKE = "scale", "spike"

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Somewhere records go."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def sync(self) -> None:
        """Make everything taken so far survive a power cut."""

    def close(self) -> None:
        """Nothing more will come."""


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
    """One JSON object per line; a disk that refuses costs records, never the run."""

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


class WandbSink:
    """A Weights & Biases run; the same one after every resume."""

    def __init__(self, config: TrainConfig, run_id: str) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "wandb.enabled: wandb is not installed", hint="in the project's folder: pip install -e '.[wandb]'"
            ) from None
        # No source code, git remotes, arguments or console text leave the machine: they may hold secrets.
        settings = wandb.Settings(console="off", disable_code=True, disable_git=True, x_disable_meta=True, silent=True)
        self._errors = (wandb.Error, OSError)
        self._has_warned = False
        self._run = wandb.init(
            project=config.wandb.project,
            mode=config.wandb.mode,
            id=run_id,
            name=Path(config.out).name,
            resume="allow" if config.wandb.mode == "online" else None,
            dir=config.out,
            config=as_values(config),
            settings=settings,
        )
        # Own step axis: wandb's built-in one refuses to go back when a resumed run repeats steps.
        self._run.define_metric("*", step_metric="optimizer_step")

    def write(self, record: Record) -> None:
        kind = record["kind"]
        values = {f"{kind}/{name}": value for name, value in _flat(record) if name not in ("kind", "step")}
        try:
            self._run.log({**values, "optimizer_step": record["step"]})
        except self._errors as error:
            if not self._has_warned:
                log.warning("wandb does not take records, metrics.jsonl does: %s", error)
            self._has_warned = True

    def sync(self) -> None:
        """Nothing to do: wandb writes by itself."""

    def close(self) -> None:
        self._run.finish()


def read_records(path: Path) -> list[Record]:
    """The records of a metrics file; half-written lines are left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "kind" in record and "step" in record:
            records.append(record)
    return records


def supersede(path: Path, records: Sequence[Record], step: int) -> None:
    """Mark all records past `step`: the run goes on from there and will write them anew."""
    past = [record for record in records if record["step"] > step]
    for record in past:
        record["superseded"] = True
    # Rewriting also drops a half-written last line, which would swallow the next record.
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def open_tracker(config: TrainConfig, path: Path, records: Sequence[Record], run_id: str) -> Tracker:
    """A tracker for the next attempt of the run with these earlier records."""
    attempt = 1 + max((record.get("attempt", 0) for record in records), default=0)
    sinks: list[Sink] = [MetricsFile(path)]
    if config.wandb.enabled:
        sinks.append(WandbSink(config, run_id))
    return Tracker(sinks, attempt)


def as_json(value: Any) -> Any:
    """The value with numbers that are not finite as text, which JSON has no other way to write."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def _flat(record: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
