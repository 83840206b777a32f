"""Ends a process whose main thread may never return from where it waits."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sft.errors import SftError

STDERR = 2


@contextmanager
def ended_after(limit_s: float, error: SftError, leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Say the error and leave with its code if the block takes longer than the limit, wherever it waits."""

    def end() -> None:
        os.write(STDERR, f"sft: {error}\n".encode())
        leave(error.exit_code)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
