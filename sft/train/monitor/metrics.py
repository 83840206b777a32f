"""What a run reports: metrics.jsonl always, Weights & Biases and TensorBoard if switched on; their only home."""

import errno
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sft.config.train import TrainConfig
from sft.config.yaml_text import as_values
from sft.errors import ConfigError
from sft.redact import environment_secrets, redact
from sft.storage.atomic import write_text

Record = dict[str, Any]
STEP, EVAL, SAVE, START, GATE, STOP = "step", "eval", "save", "start", "gate", "stop"
SCALE, SPIKE = "scale", "spike"

TENSORBOARD = "tensorboard"
"""Folder of the event files in the run folder."""
FLUSH_S = 30
INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 30.0, 15.0
"""How long wandb may keep the run waiting; finishing must fit into the grace period after a SIGTERM."""

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
        except Exception as error:  # noqa: BLE001 - trackers raise much more than they say
            self._sink = None
            log.warning("%s takes no more records, metrics.jsonl does: %s", self._name, _told(error))


class WandbSink:
    """A Weights & Biases run; the same one after every resume."""

    def __init__(self, wandb: Any, config: TrainConfig, run_id: str, attempts: Mapping[str, int]) -> None:
        """`attempts` says after which step each started: its points beyond the start of the next are superseded."""
        # No source code, git remotes, arguments or console text leave the machine: they may hold secrets.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            silent=True,
            login_timeout=INIT_TIMEOUT_S,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        )

        def init(mode: str, resume: str | None) -> Any:
            return wandb.init(
                project=config.wandb.project,
                mode=mode,
                id=run_id,
                name=Path(config.out).name,
                resume=resume,
                dir=config.out,
                config={**as_values(config), "attempts": attempts},
                settings=settings,
            )

        try:
            self._run = init(config.wandb.mode, "allow" if config.wandb.mode == "online" else None)
        except Exception as error:  # no network, a wrong key, a helper process that crashes
            if config.wandb.mode == "offline":
                raise
            log.warning("wandb cannot be reached, going on offline (`wandb sync` sends it later): %s", _told(error))
            self._run = init("offline", None)
        # Own step axis: wandb's built-in one refuses to go back when a resumed run repeats steps.
        self._run.define_metric("*", step_metric="optimizer_step")

    def write(self, record: Record) -> None:
        values = {f"{record['kind']}/{name}": value for name, value in _flat(record) if name not in ("kind", "step")}
        self._run.log({**values, "optimizer_step": record["step"]})

    def sync(self) -> None:
        """Nothing to do: wandb writes by itself."""

    def close(self) -> None:
        self._run.finish()


class TensorBoardSink:
    """Event files for TensorBoard, a new one for each attempt."""

    def __init__(self, writer: Any, folder: Path, step: int) -> None:
        # TensorBoard hides what earlier attempts wrote for this step or later ones: it is written anew.
        purged = step + 1 if step else 0
        self._writer = writer(str(folder), purge_step=purged, flush_secs=FLUSH_S)

    def write(self, record: Record) -> None:
        for name, value in _flat(record):
            if isinstance(value, int | float) and name not in ("step", "attempt"):
                self._writer.add_scalar(f"{record['kind']}/{name}", float(value), record["step"])

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


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


def open_tracker(config: TrainConfig, path: Path, records: Sequence[Record], run_id: str, *, step: int = 0) -> Tracker:
    """A tracker for the next attempt, which goes on after `step`, of the run with these earlier records.

    Raises: ConfigError if a tracker is switched on that is not installed.
    """
    attempt = 1 + max((record.get("attempt", 0) for record in records), default=0)
    starts = {str(record["attempt"]): record["step"] for record in records if record["kind"] == START}
    sinks: list[Sink] = [MetricsFile(path)]
    if config.wandb.enabled:
        wandb, attempts = _wandb(), {**starts, str(attempt): step}
        sinks.append(Guarded("wandb", lambda: WandbSink(wandb, config, run_id, attempts)))
    if config.tensorboard:
        writer, folder = _summary_writer(), path.parent / TENSORBOARD
        sinks.append(Guarded("TensorBoard", lambda: TensorBoardSink(writer, folder, step)))
    return Tracker(sinks, attempt)


def _wandb() -> Any:
    # Its own reports of errors hold traces, and at exit they wait for a server that may not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError:
        raise _not_installed("wandb", "wandb.enabled") from None
    return wandb


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _not_installed("tensorboard", "tensorboard") from None
    return SummaryWriter


def _not_installed(package: str, setting: str) -> ConfigError:
    return ConfigError(
        f"{setting}: {package} is not installed", hint=f"in the project's folder: pip install -e '.[{package}]'"
    )


def _told(error: Exception) -> str:
    """An error's text, or its name if it has none, without what may not be shown."""
    return redact(str(error) or type(error).__name__, environment_secrets(os.environ))


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
