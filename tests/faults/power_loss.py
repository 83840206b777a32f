"""A power cut: what a dead victim had not synced is lost, as far as a file system may lose it."""

import os
import random
import re
from pathlib import Path
from typing import Any

from tests.faults import failpoints
from tests.faults.process import Journal, Victim


class PowerCut:
    """Knows what lay on disk before a victim started, and what the victim synced."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._folder, self._rng = folder, rng
        self._before = {path.stat().st_ino: path.stat().st_size for path in _files(folder)}

    def watch(self, journal: Journal) -> None:
        """The hook: note what the victim syncs and renames."""

        def syncing(original: Any, descriptor: int) -> None:
            original(descriptor)
            status = os.fstat(descriptor)
            journal.write("synced", [status.st_ino, status.st_size])

        def renaming(original: Any, old: Any, new: Any, **named: Any) -> None:
            original(old, new, **named)
            journal.write("renamed", [str(old), str(new), Path(new).parent.stat().st_ino])

        failpoints.replace("os:fsync", syncing)
        failpoints.replace("os:rename", renaming)

    def strike(self, victim: Victim, *, undone_share: float = 0.5) -> list[str]:
        """Cut what was never synced and undo a share of the folder renames that were not; returns what was hurt."""
        synced = self._before | dict(victim.journal.read("synced"))
        hurt = [*self._undo_renames(victim, undone_share)]
        for path in _files(self._folder):
            status = path.stat()
            kept = min(synced.get(status.st_ino, 0), status.st_size)
            if kept < status.st_size:
                os.truncate(path, self._rng.randint(kept, status.st_size - 1))
                hurt.append(path.name)
        return hurt

    def _undo_renames(self, victim: Victim, share: float) -> list[str]:
        pending: dict[str, tuple[str, int]] = {}
        for kind, value in victim.journal.lines():
            if kind == "renamed" and re.search(r"\.staging-", value[0]):
                pending[value[1]] = (value[0], value[2])
            elif kind == "synced":
                pending = {new: old for new, old in pending.items() if old[1] != value[0]}
        undone = []
        for new, (old, _) in pending.items():
            if Path(new).is_dir() and not Path(old).exists() and self._rng.random() < share:
                Path(new).rename(old)
                undone.append(f"rename of {Path(new).name}")
        return undone


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
