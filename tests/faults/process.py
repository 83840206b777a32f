"""A victim: a fork of the warmed-up process that runs the product, while a fault is waiting for it."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.oracle import Slow

LIMIT_S = 60.0
FIRED = "fired"


class Journal:
    """What a victim tells whoever waits for it; it outlives the victim's death, and full disks do not touch it."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("journal")

    def write(self, kind: str, value: Any) -> None:
        """Add a line."""
        os.write(self._descriptor, (json.dumps([kind, value]) + "\n").encode())

    def fire(self, what: str) -> None:
        """Prove that the fault happens now."""
        self.write(FIRED, what)

    def lines(self) -> list[tuple[str, Any]]:
        """All lines: kind and value."""
        size = os.fstat(self._descriptor).st_size
        return [tuple(json.loads(line)) for line in os.pread(self._descriptor, size, 0).splitlines()]

    def read(self, kind: str) -> list[Any]:
        """The values of all lines of a kind."""
        return [value for found, value in self.lines() if found == kind]

    def close(self) -> None:
        """Free its memory."""
        os.close(self._descriptor)


Hook = Callable[[Journal], None]
"""Called in the victim, before the product."""
Job = Callable[[], int]
"""What the victim does; returns its exit code."""


class Victim:
    """A running fork."""

    def __init__(self, job: Job, hooks: tuple[Hook, ...], messages: Path, environ: Mapping[str, str]) -> None:
        self.journal, self._messages = Journal(), messages
        self._exit_code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_victim(job, hooks, self.journal, messages, environ)

    @property
    def messages(self) -> str:
        """What it printed."""
        return self._messages.read_text(errors="replace")

    @property
    def fired(self) -> list[Any]:
        """Its proofs that the fault happened."""
        return self.journal.read(FIRED)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it is dead and waited for."""
        if self._exit_code is None:
            os.kill(self.pid, number)

    def ended(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs."""
        if self._exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._exit_code = os.waitstatus_to_exitcode(status) if pid else None
        return self._exit_code

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Its exit code.

        Raises: Slow if it does not end in time; it is killed then.
        """
        end_s = time.monotonic() + limit_s
        while (code := self.ended()) is None:
            if time.monotonic() > end_s:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self._exit_code = -signal.SIGKILL
                raise Slow(f"still running after {limit_s:.0f} s: {self.messages[-500:]}")
            time.sleep(0.002)
        return code


def _be_victim(job: Job, hooks: tuple[Hook, ...], journal: Journal, messages: Path, environ: Mapping[str, str]) -> None:
    code = 1
    try:
        descriptor = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environ)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever nohup made of it
        for hook in hooks:
            hook(journal)
        code = job()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  the interpreter would do the same
        with suppress(OSError):
            traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            code = 120  # as the interpreter does
        finally:
            os._exit(code)
