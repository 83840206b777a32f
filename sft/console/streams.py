"""How a command meets the terminal, the pipe and the operating system around it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from sft.redact import environment_secrets, redact

TERMINATED = 128 + signal.SIGTERM


class _Outlet:
    """A text stream that shows no secret and falls silent when its reader has gone, instead of stopping the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._secrets = stream, environment_secrets(os.environ)
        # A terminal without Unicode shows an escape instead of ending the command.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with self._endured():
            self._stream.write(redact(text, self._secrets))
        return len(text)

    def flush(self) -> None:
        with self._endured():
            self._stream.flush()

    def finish(self) -> None:
        """Say what is left; what cannot be said then must not fail the interpreter when it ends."""
        try:
            self._stream.flush()
        except OSError:
            self._fall_silent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _endured(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._fall_silent()
        except OSError:
            return  # a full disk under the log costs lines, not the work

    def _fall_silent(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def command_environment() -> Iterator[None]:
    """Run a command so that closed pipes are harmless and SIGTERM unwinds it, removing half-written folders."""
    out, errors = _Outlet(sys.stdout), _Outlet(sys.stderr)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, errors)):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
        out.finish()
        errors.finish()


def _terminate(*_: object) -> None:
    sys.exit(TERMINATED)
