"""Standard streams and signals of a command: secrets redacted, closed pipes and SIGTERM handled."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from sft.redact import environment_secrets, redact

TERMINATED = 128 + signal.SIGTERM


class _SafeStream:
    """A text stream that redacts secrets and discards output once its reader has closed, instead of failing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._secrets = stream, environment_secrets(os.environ)
        # On a terminal without Unicode print an escape instead of raising an error.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with self._tolerate_errors():
            self._stream.write(redact(text, self._secrets))
        return len(text)

    def flush(self) -> None:
        with self._tolerate_errors():
            self._stream.flush()

    def finish(self) -> None:
        """Flush what is left; an error here must not make the interpreter fail at exit."""
        try:
            self._stream.flush()
        except OSError:
            self._discard_output()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _tolerate_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._discard_output()
        except OSError:
            return  # if the log's disk is full, lines are lost and the command continues

    def _discard_output(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def command_environment() -> Iterator[None]:
    """Run a command so that closed pipes do no harm and SIGTERM raises SystemExit, which removes staging folders."""
    out, errors = _SafeStream(sys.stdout), _SafeStream(sys.stderr)
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
