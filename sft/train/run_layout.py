"""The paths inside a run folder, all defined here."""

from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = "checkpoints"
STATE_FILE = "state.json"
"""A file that every checkpoint folder holds, and no other folder does."""
STACKS = "stacks"
STOP_FILE = "STOP"


@dataclass(frozen=True)
class RunLayout:
    """The files and folders of a run, whether they exist or not."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder with a folder for every checkpoint."""
        return self.path / CHECKPOINTS

    @property
    def record(self) -> Path:
        """The run's id and identity, written once."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """The resolved config of the newest start."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One record per line for each step and event."""
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """One line per step with the packs that it trained on."""
        return self.path / "ledger.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder with event files, if they are switched on."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """The folder with the traces of profiled steps."""
        return self.path / "profile"

    @property
    def bad_steps(self) -> Path:
        """The folder with a file for every bad step."""
        return self.path / "bad_steps"

    @property
    def stop_file(self) -> Path:
        """The file that requests the run to stop."""
        return self.path / STOP_FILE

    @property
    def lock(self) -> Path:
        """The file that the running process locks."""
        return self.path / ".lock"

    def bad_step(self, step: int) -> Path:
        """The file about a bad step."""
        return self.bad_steps / f"step-{step:08d}.json"

    def stacks(self, rank: int) -> Path:
        """The file to which a stuck rank writes its stacks."""
        return self.path / STACKS / f"rank-{rank:05d}.txt"
