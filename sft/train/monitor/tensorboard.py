"""TensorBoard, and the only import of its package: event files in the run folder."""

from pathlib import Path
from typing import Any

from sft.errors import ConfigError
from sft.storage.json_file import flat
from sft.train.monitor.records import Record

FLUSH_S = 30


class TensorBoardSink:
    """Event files for TensorBoard, a new one for each attempt."""

    def __init__(self, writer: Any, folder: Path, step: int) -> None:
        # TensorBoard hides what earlier attempts wrote for this step or later ones, since these steps are repeated.
        purged = step + 1 if step else 0
        self._writer = writer(str(folder), purge_step=purged, flush_secs=FLUSH_S)

    def write(self, record: Record) -> None:
        for name, value in flat(record, "/"):
            if isinstance(value, int | float) and name not in ("step", "attempt"):
                self._writer.add_scalar(f"{record['kind']}/{name}", float(value), record["step"])

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def installed_writer() -> Any:
    """The class that writes event files.

    Raises: ConfigError if the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard: tensorboard is not installed", hint="in the project's folder: pip install -e '.[tensorboard]'"
        ) from None
    return SummaryWriter
