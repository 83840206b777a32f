"""The tree of errors, with one exit code per branch.

SftError                 1   a bug of ours
├── DataError           65   a source, a shard or a checkpoint's content is bad
├── NumericsError       70   loss or gradients are not finite
├── PeerError           71   another process, rank or the cluster failed
├── StorageError        74   the disk refused, or a file is damaged or already taken
├── StopRequested       75   stopped on purpose with everything saved: run the command again
└── ConfigError         78   what was asked for contradicts itself or what is there
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path


class SftError(Exception):
    """An error that a user can act on: what failed, on what, what was expected, what to do next."""

    exit_code = 1

    def __init__(self, what: str, *, on: str | Path | None = None, hint: str | None = None) -> None:
        self.what, self.on, self.hint = what, on, hint
        super().__init__(self.message())

    def __reduce__(self) -> tuple[object, ...]:
        # Default pickling loses keyword-only arguments; workers send these errors to the parent process.
        return functools.partial(type(self), on=self.on, hint=self.hint), (self.what,)

    def message(self) -> str:
        """The text a user reads: `on: what`, then the next step on its own line."""
        where = f"{self.on}: " if self.on is not None else ""
        step = f"\n  → {self.hint}" if self.hint else ""
        return f"{where}{self.what}{step}"

    def to_json(self) -> dict[str, str | None]:
        """The error as JSON values, for another process."""
        on = None if self.on is None else str(self.on)
        return {"kind": type(self).__name__, "what": self.what, "on": on, "hint": self.hint}


class DataError(SftError):
    """Raw rows, shards or checkpoint contents do not satisfy their contract."""

    exit_code = 65


class NumericsError(SftError):
    """Loss or gradients are not finite, and continuing would damage the weights."""

    exit_code = 70


class PeerError(SftError):
    """A worker process, another rank or the cluster failed."""

    exit_code = 71


class StorageError(SftError):
    """A file cannot be written, is damaged, or belongs to another run."""

    exit_code = 74


class StopRequested(SftError):
    """The run was asked to stop, saved its state, and can be started again."""

    exit_code = 75


class ConfigError(SftError):
    """A command line or config file asks for something impossible or contradictory."""

    exit_code = 78


def from_json(value: Mapping[str, str | None], who: str) -> SftError:
    """The error that another process reported, with the name of the process before what failed."""
    kinds = {kind.__name__: kind for kind in SftError.__subclasses__()}
    kind = kinds.get(str(value["kind"]), SftError)
    return kind(f"{who}: {value['what']}", on=value["on"], hint=value["hint"])


def listed(lines: Sequence[object], limit: int | None = None) -> str:
    """The lines as a list below a sentence; those beyond the limit are only counted."""
    shown = [*map(str, lines[:limit])]
    left = len(lines) - len(shown)
    return "".join(f"\n  - {line}" for line in [*shown, *([f"and {left} more"] if left else [])])
