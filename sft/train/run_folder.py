"""The run folder: config.yaml, run.json, metrics.jsonl and checkpoints/; for one run and one process at a time."""

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sft.config.train import TrainConfig
from sft.config.yaml_text import as_yaml
from sft.errors import ConfigError, StorageError, listed
from sft.storage.atomic import write_text
from sft.storage.folder_lock import folder_lock
from sft.storage.json_file import read_json, readable
from sft.train.checkpoint.store import clean
from sft.train.distributed.ranks import RankGroup
from sft.train.fingerprint import Identity, differences
from sft.train.monitor.records import STEP, read_records
from sft.train.run_layout import CHECKPOINTS, STACKS, STOP_FILE, RunLayout

SCHEMA_VERSION = 1


class RunFolder(RunLayout):
    """The folder that holds everything of one run."""

    @classmethod
    @contextmanager
    def hold(cls, path: Path, ranks: RankGroup) -> Iterator["RunFolder"]:
        """Lock the folder for this run and delete what killed processes left in it; the first process holds the lock.

        Raises: ConfigError if it holds something that is not a run, StorageError if another process holds it.
        """
        with ExitStack() as held:
            with ranks.raise_on_all():
                folder = held.enter_context(cls._hold(path)) if ranks.is_first else cls(path)
            yield folder

    @classmethod
    @contextmanager
    def _hold(cls, path: Path) -> Iterator["RunFolder"]:
        _refuse_foreign(path)
        folder = cls(path)
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot be made: {error}", on=path, hint="check space and permissions") from error
        with folder_lock(folder.lock):
            clean(folder.checkpoints)
            # A request to stop was meant for the process that ran then, and that one is gone.
            folder.stop_file.unlink(missing_ok=True)
            yield folder

    def has_history(self) -> bool:
        """True if a step was ever done here, so that the run's identity is fixed."""
        return any(self.checkpoints.iterdir()) or any(record["kind"] == STEP for record in read_records(self.metrics))

    def enter(self, config: TrainConfig, identity: Identity) -> str:
        """Make it the folder of this run, or make sure that it is; returns the run's id.

        Raises: ConfigError listing every setting and input that may not change but did.
        """
        if self.has_history():
            run_id, before = self.read()
            require_same(before, identity, self.path)
        else:
            run_id = secrets.token_hex(8)
            record = {"schema_version": SCHEMA_VERSION, "run_id": run_id, "identity": identity}
            write_text(self.record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        write_text(self.config, as_yaml(config))
        return run_id

    def read(self) -> tuple[str, Identity]:
        """The run's id and identity.

        Raises: StorageError if they cannot be read.
        """
        path = self.record
        with readable(path, StorageError, hint="restore it, or name another out"):
            record = read_json(path)
            if record["schema_version"] != SCHEMA_VERSION:
                raise ConfigError(
                    f"schema version {record['schema_version']}, this program reads {SCHEMA_VERSION}",
                    on=path,
                    hint="use the version of sft that wrote it",
                )
            return str(record["run_id"]), dict(record["identity"])


def require_same(before: Identity, now: Identity, where: Path) -> None:
    """Refuse to resume a run under other conditions.

    Raises: ConfigError listing every difference with both values.
    """
    changed = differences(before, now)
    if changed:
        raise ConfigError(
            f"holds a run under other conditions:{listed(changed)}",
            on=where,
            hint="go back to these values, or name another out for a new run",
        )


def _refuse_foreign(path: Path) -> None:
    if not path.exists() or RunLayout(path).record.is_file():
        return
    if not path.is_dir():
        raise ConfigError("holds something else: it is a file", on=path, hint="name another out")
    # What a process that was killed right after its start may leave.
    ours = {CHECKPOINTS, STACKS, STOP_FILE}
    names = sorted(item.name for item in path.iterdir() if not item.name.startswith(".") and item.name not in ours)
    if names:
        raise ConfigError(f"holds something else: {', '.join(names[:5])}", on=path, hint="name another out")
