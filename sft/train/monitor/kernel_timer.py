"""A timer in the C library: it needs neither the interpreter nor a Python thread.

`faulthandler.dump_traceback_later(exit=True)` also ends a process in which a library holds the interpreter forever,
but with code 1, which means a bug of ours, where 71 means that the cluster or another rank failed; a test shows both.
Once faulthandler accepts an exit code, it can replace this module.
"""

import ctypes
import math
from typing import Any

CLOCK_MONOTONIC = 1
SIGEV_THREAD = 2
SIGEVENT_BYTES = 64
LIBRARIES = (None, "librt.so.1")
"""The libraries with Linux's timers: the C library, or librt beside an old one."""


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
    """The kernel's `struct itimerspec`: the interval, and the first expiry; all zeros is never."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns"))


class KernelTimer:
    """Calls a function of the C library once, with one argument, in its own thread, when the timer expires.

    On a system without such timers, nothing is ever called. A text lives as long as its timer: keep a reference.
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
        """Expire after this many seconds instead of at the time set before; infinity is never."""
        if self._library is not None:
            fraction, whole = math.modf(after_s if after_s < math.inf else 0.0)
            setting = _Setting(first_s=int(whole), first_ns=int(fraction * 1e9))
            self._library.timer_settime(self._id, 0, ctypes.byref(setting), None)

    def close(self) -> None:
        """Cancel the timer for good."""
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
