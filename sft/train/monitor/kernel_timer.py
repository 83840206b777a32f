"""A clock that rings in the C library: it needs neither the interpreter nor any thread that Python knows of.

`faulthandler.dump_traceback_later(exit=True)` also ends a process in which a library holds the interpreter for ever,
but with code 1, which means a bug of ours, where 71 means that the cluster or another rank failed; a test shows both.
Once faulthandler takes an exit code, it can take the place of this module.
"""

import ctypes
import math
from typing import Any

CLOCK_MONOTONIC = 1
SIGEV_THREAD = 2
SIGEVENT_BYTES = 64
LIBRARIES = (None, "librt.so.1")
"""Where Linux keeps its timers: in the C library, or beside it if that is old."""


class _Event(ctypes.Structure):
    """The kernel's `struct sigevent`, as far as SIGEV_THREAD reads it."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("unused", ctypes.c_byte * (SIGEVENT_BYTES - 32)),
    )


class _Setting(ctypes.Structure):
    """The kernel's `struct itimerspec`: how often to repeat, and when to ring first; all zeros is never."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns"))


class KernelTimer:
    """Calls a function of the C library once, with one argument, in a thread of its own, when its time is over.

    Where the system has no such timers, nothing is ever called. A text lives as long as its timer: keep that.
    """

    def __init__(self, function: str, argument: int | bytes) -> None:
        self._id, self._library = ctypes.c_void_p(), _library(function)
        if self._library is None:
            return
        self._text = ctypes.create_string_buffer(argument) if isinstance(argument, bytes) else None
        event = _Event(
            value=argument if self._text is None else ctypes.addressof(self._text),
            notify=SIGEV_THREAD,
            function=ctypes.cast(getattr(self._library, function), ctypes.c_void_p),
        )
        if self._library.timer_create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._id)):
            self._library = None

    def set(self, after_s: float) -> None:
        """Ring after so many seconds, and not at the time set before; infinity is never."""
        if self._library is not None:
            fraction, whole = math.modf(after_s if after_s < math.inf else 0.0)
            setting = _Setting(first_s=int(whole), first_ns=int(fraction * 1e9))
            self._library.timer_settime(self._id, 0, ctypes.byref(setting), None)

    def close(self) -> None:
        """Never ring again."""
        if self._library is not None:
            self._library.timer_delete(self._id)
            self._library = None


def _library(*wanted: str) -> Any:
    """The library that has the timers and the wanted functions, or None."""
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if all(hasattr(library, function) for function in ("timer_create", *wanted)):
            return library
    return None
