"""ledger.jsonl: which packs every step really trained on, as reported by the processes that computed them.

Every line is chained to those before it by a hash, which the checkpoints keep: a line cannot be lost or changed
unnoticed. `sft verify RUN` compares the ledger with the order that the run should have followed.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft.errors import StorageError
from sft.hashing import text_sha256
from sft.storage.atomic import write_text

BEGINNING = ""


class Ledger:
    """The ledger of a run in progress; without a path it only counts."""

    def __init__(self, path: Path | None = None, num_steps: int = 0) -> None:
        """Continue after `num_steps` steps; later lines belong to steps that will be repeated."""
        self._path, self.digest, self._waiting = path, BEGINNING, b""
        self._num_bytes, self._computed = 0, list[int]()
        if path is not None:
            lines = [line for line in read_lines(path) if json.loads(line)["step"] <= num_steps]
            for line in lines:
                self.digest = chained(self.digest, line)
            text = "".join(f"{line}\n" for line in lines)
            write_text(path, text)
            self._num_bytes = len(text.encode())

    def note(self, packs: Sequence[int]) -> None:
        """Remember the packs that this process has computed in the step in progress."""
        self._computed += packs

    def take(self) -> tuple[int, ...]:
        """The packs that this process has computed since the last call."""
        taken, self._computed = tuple(self._computed), []
        return taken

    def add(self, step: int, packs: Sequence[int]) -> None:
        """Add the packs of step `step`, counted from 1."""
        line = json.dumps({"step": step, "packs": list(packs)})
        self.digest = chained(self.digest, line)
        if self._path is not None:
            self._waiting += f"{line}\n".encode()

    def sync(self) -> None:
        """Write all lines so far so that they survive a power cut; only then may a checkpoint of these steps follow.

        Raises: StorageError if the disk refuses; the next call tries again.
        """
        if self._path is None or not self._waiting:
            return
        try:
            with self._path.open("r+b") as stream:
                stream.truncate(self._num_bytes)  # an earlier try may have written a part
                stream.seek(self._num_bytes)
                stream.write(self._waiting)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise StorageError(f"cannot be written: {error}", on=self._path, hint="check space") from error
        self._num_bytes += len(self._waiting)
        self._waiting = b""


def read_lines(path: Path) -> Iterator[str]:
    """The whole lines of a ledger, up to the first broken one."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if not isinstance(entry, dict) or entry.keys() != {"step", "packs"}:
            return
        yield line


def chained(digest: str, line: str) -> str:
    """The hash of a ledger that had the hash `digest` before this line."""
    return text_sha256(f"{digest}\n{line}")
