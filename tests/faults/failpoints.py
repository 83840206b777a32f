"""Faults inside a victim: hooks that its process installs before the product runs there.

A trip point is a step on disk: a file opened for reading or writing, synced, renamed or removed, a folder made or
removed. It has a name, such as `fsync checkpoints/.staging-step-00000008/state.json`, and a visit, as the same step may
come again.
"""

import importlib
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.process import Hook, Journal

Action = Callable[[Path], None]
PART = re.compile(r"\.[^./]+\.\d+\.part$")
CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "remove")


def note_points(out: Path) -> Hook:
    """Write the name of every trip point below `out` that changes the disk to the journal."""

    def note(journal: Journal) -> None:
        _watch(out, lambda point, _path: point.startswith("read") or journal.write("point", point), _nothing)

    return note


def at_point(out: Path, pattern: str, action: Action, *, visit: int = 1, after: bool = False) -> Hook:
    """Act right before, or right after, the visit-th step on disk whose name matches the pattern; 0 is every one."""

    def install(journal: Journal) -> None:
        seen: Counter[str] = Counter()

        def act(point: str, path: Path) -> None:
            if not re.fullmatch(pattern, point):
                return
            seen[""] += 1
            if visit in (0, seen[""]):
                journal.fire(point)
                action(path)

        _watch(out, _nothing if after else act, act if after else _nothing)

    return install


def on_call(target: str, act: Callable[[int, Journal], Any], *, after: bool = False) -> Hook:
    """Act on every call, counted from 1, of `module:name.of.function`; a result that is not None replaces its own."""

    def install(journal: Journal) -> None:
        calls: Counter[str] = Counter()

        def wrapped(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            calls[""] += 1
            number = calls[""]
            if not after:
                act(number, journal)
                return original(*arguments, **named)
            result = original(*arguments, **named)
            changed = act(number, journal)
            return result if changed is None else changed(result)

        replace(target, wrapped)

    return install


def replace(target: str, wrapped: Callable[..., Any]) -> None:
    """Let `wrapped(original, ...)` stand in for `module:name.of.function`."""
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)

    def stand_in(*arguments: Any, **named: Any) -> Any:
        return wrapped(original, *arguments, **named)

    setattr(owner, name, stand_in)


def send(*numbers: signal.Signals) -> Action:
    """An action: send these signals to the own process."""

    def act(_path: Path) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def cut_and_kill(share: float) -> Action:
    """An action: leave only a share of the file, as a process killed while writing does, and die."""

    def act(path: Path) -> None:
        if path.is_file():
            os.truncate(path, int(path.stat().st_size * share))
        os.kill(os.getpid(), signal.SIGKILL)

    return act


def fail(number: int) -> Action:
    """An action: the system call fails with this error number."""

    def act(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    return act


def _nothing(_point: str, _path: Path) -> None:
    """What happens on the other side of a trip point."""


def _watch(out: Path, before: Callable[[str, Path], Any], after: Callable[[str, Path], Any]) -> None:
    for call in CALLS:
        _watch_call(call, out, before, after)

    def note_open(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and (path := _path(arguments[0])) and (name := _name(path, out)):
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            before(f"{'write' if writes else 'read'} {name}", path)

    sys.addaudithook(note_open)


def _watch_call(call: str, out: Path, before: Callable[[str, Path], Any], after: Callable[[str, Path], Any]) -> None:
    def watching(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        path = _path(arguments[0], named.get("dir_fd"))
        name = _name(path, out) if path else None
        if path is None or name is None:
            return original(*arguments, **named)
        before(f"{call} {name}", path)
        result = original(*arguments, **named)
        after(f"{call} {name}", path)
        return result

    replace(f"os:{call}", watching)


def _path(name: Any, folder: int | None = None) -> Path | None:
    if isinstance(name, int):
        return Path(f"/proc/self/fd/{name}").readlink() if name >= 0 else None
    path = Path(os.fsdecode(name))
    return path if folder is None else Path(f"/proc/self/fd/{folder}").readlink() / path


def _name(path: Path, out: Path) -> str | None:
    # The name of a part tells the process that writes it, which is another one in every run.
    return PART.sub(".part", path.relative_to(out).as_posix()) if path.is_relative_to(out) else None


def exactly(point: str) -> str:
    """The pattern of one trip point, whether or not the product prepares it under another name."""
    return re.escape(point).replace(r"\.staging\-", r"(\.staging-)?")
