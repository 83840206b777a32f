"""The state of a run in a checkpoint, besides tensors: progress, config, shards, counts and random generators."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.config.model import LoraConfig
from sft.errors import StorageError
from sft.storage.atomic import write_text
from sft.storage.json_file import read_json, readable
from sft.train.fingerprint import Identity
from sft.train.monitor.counts import Counts
from sft.train.run_layout import STATE_FILE


@dataclass(frozen=True)
class State:
    """The state of a run in a checkpoint, besides tensors."""

    step: int
    """Optimizer steps done."""
    position: int
    """Packs consumed, repeats in later epochs included."""
    epoch: float
    counts: Counts
    identity: Identity
    config: dict[str, Any]
    """The resolved config of the process that saved it."""
    shards: dict[str, Any]
    """Name, content digest, sources and licenses of the build it was trained on."""
    engine: dict[str, Any]
    """State of the engine besides tensors."""
    ledger: str
    """Hash of the ledger up to this step."""
    eval_loss: float | None
    """Held-out loss of all sources, if it was measured at this step."""
    rng: dict[str, str]
    """State of PyTorch's random generators by device, as hex digits."""
    versions: dict[str, str]
    trainer: dict[str, Any] = field(default_factory=dict)
    """State of other trainers, by name, as JSON values; next-token fine-tuning has none."""

    @property
    def lora(self) -> LoraConfig:
        """The adapters beside the weights in the checkpoint."""
        values = self.config.get("lora", {})
        return LoraConfig(**{**values, "targets": tuple(values["targets"])}) if values else LoraConfig()

    @classmethod
    def read(cls, folder: Path) -> "State":
        """The state of a checkpoint.

        Raises: StorageError if it cannot be read.
        """
        with readable(folder / STATE_FILE, StorageError, hint="take another checkpoint"):
            values = read_json(folder / STATE_FILE)
            return cls(**{**values, "counts": Counts(**values["counts"])})

    def write(self, folder: Path) -> None:
        """Write state.json to the folder."""
        write_text(folder / STATE_FILE, json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n")
