"""Ends a process that is stuck: at its limit it writes every thread's stack to a file, at twice that it exits.

A collective that one rank does not join blocks all ranks, so each has its own watchdog and writes its own stacks.
A Python thread reports and exits if it can run. As a fallback, a little later, there are faulthandler's thread
and two timers of the kernel, which need neither the interpreter nor its lock.
"""

import faulthandler
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sft.config.train import HangConfig
from sft.errors import PeerError
from sft.train.distributed.world import World
from sft.train.monitor.hang_limit import HangLimit
from sft.train.monitor.kernel_timer import KernelTimer
from sft.train.run_layout import RunLayout

EXIT_CODE = PeerError.exit_code
LEAVE_AT_LIMITS = 2.0
GRACE_LIMITS = 0.1
"""The fallbacks wait this many limits longer, since the Python thread reports more."""
LEAVING_S = 60.0
"""How long a failed rank may take to tear down its process groups, which is where such ranks hang."""
LOOKS_PER_LIMIT, LONGEST_NAP_S = 20, 1.0
STDERR = 2
NUM_RANKS_SHOWN = 8

log = logging.getLogger(__name__)


class Watchdog:
    """Expects a `beat` within the limit for as long as the `with` block runs; see hang_limit.py for the limit.

    Invariant: a process that does not beat ends with code 71, even if it holds the interpreter lock forever; one of
    several that leaves the block with an error ends with that error's code soon after, even if it hangs on the way.
    """

    def __init__(
        self,
        run_folder: Path,
        world: World,
        config: HangConfig,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._folder, self._world, self._clock, self._leave = RunLayout(run_folder), world, clock, leave
        self._limit = HangLimit(config)
        self._path = self._folder.stacks(world.rank)
        self._name = f"rank {world.rank} of {world.size} on {platform.node()}"
        limits_s = [limit_s for limit_s in (config.timeout_s, config.first_step_timeout_s) if limit_s]
        self._nap_s = min([LONGEST_NAP_S, *(limit_s / LOOKS_PER_LIMIT for limit_s in limits_s)])
        self._thread = threading.Thread(target=self._watch, daemon=True) if limits_s else None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._armed_s, self._armed_limit_s = -math.inf, 0.0
        self._stage: Literal["fine", "warned", "left"] = "fine"

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab", buffering=0)
        self._sizes_before = [self._size(rank) for rank in range(self._world.size)]
        self._shows_crashes = not faulthandler.is_enabled()
        if self._shows_crashes:
            faulthandler.enable(self._file)
        last_words = f"sft: {self._name} is stuck and its interpreter does not answer; {self._advice()}"
        self._last_words = KernelTimer("warnx", last_words.replace("%", "%%").encode())
        self._exit = KernelTimer("_exit", EXIT_CODE)
        self.beat("start", 0)
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        with self._lock:
            faulthandler.cancel_dump_traceback_later()
            if self._shows_crashes:
                faulthandler.disable()
            self._last_words.close()
            self._exit.close()
            self._file.close()
            if not self._size(self._world.rank):
                self._path.unlink(missing_ok=True)
        if isinstance(error, Exception) and self._world.size > 1:
            KernelTimer("_exit", getattr(error, "exit_code", 1)).set(LEAVING_S)

    def beat(self, phase: str, step: int) -> None:
        """Report progress, and the current phase: hang_limit.STEP, or a phase that may take longer."""
        with self._lock:
            now_s = self._clock()
            silent_s = self._limit.silent_s(now_s)
            self._limit.beat(phase, step, now_s)
            limit_s = self._limit.limit_s
            # Restarting faulthandler's thread takes too long to do it at every beat.
            if limit_s != self._armed_limit_s or self._stage == "warned" or now_s - self._armed_s >= self._nap_s:
                self._arm(limit_s, now_s)
            has_recovered, self._stage = self._stage == "warned", "fine"
        if has_recovered:
            log.warning("continued after %.0f s without progress; its stacks are in %s", silent_s, self._path)

    def look(self) -> None:
        """Warn or exit if it is time; the thread calls this repeatedly."""
        with self._lock:
            if self._closed.is_set():
                return
            silent_s, limit_s = self._limit.silent_s(self._clock()), self._limit.limit_s
            if self._stage == "fine" and silent_s >= limit_s:
                self._stage = "warned"
                self._warn(silent_s)
            if self._stage == "warned" and silent_s >= LEAVE_AT_LIMITS * limit_s:
                self._stage = "left"
                self._say(f"made no progress for {silent_s:.0f} s; {self._silent_ranks()}{self._advice()}")
                self._leave(EXIT_CODE)

    def _watch(self) -> None:
        while not self._closed.wait(self._nap_s):
            self.look()

    def _arm(self, limit_s: float, now_s: float) -> None:
        self._armed_limit_s, self._armed_s = limit_s, now_s
        faulthandler.cancel_dump_traceback_later()
        if limit_s < threading.TIMEOUT_MAX:
            faulthandler.dump_traceback_later((1 + GRACE_LIMITS) * limit_s, file=self._file)
        self._last_words.set((LEAVE_AT_LIMITS + GRACE_LIMITS) * limit_s)
        self._exit.set((LEAVE_AT_LIMITS + 2 * GRACE_LIMITS) * limit_s)

    def _warn(self, silent_s: float) -> None:
        # The interpreter lock is held while the stacks are read, so no other thread runs meanwhile.
        faulthandler.cancel_dump_traceback_later()
        limit = self._limit
        what = f"no progress for {silent_s:.0f} s in step {limit.step} ({limit.phase})"
        with suppress(OSError):  # a full disk does not keep the process from exiting
            when = datetime.now().isoformat(" ", "seconds")
            self._file.write(f"{when} {self._name}, process {os.getpid()}: {what}\n".encode())
            faulthandler.dump_traceback(self._file)
        left_s = (LEAVE_AT_LIMITS - 1) * limit.limit_s
        self._say(f"{what}; its stacks are in {self._path}; it leaves in {left_s:.0f} s unless it continues")

    def _say(self, text: str) -> None:
        # Not through sys.stderr, whose lock the stuck thread may hold; a closed stderr does not prevent the exit.
        with suppress(OSError):
            os.write(STDERR, f"sft: {self._name}: {text}\n".encode())

    def _silent_ranks(self) -> str:
        """The ranks that wrote no stacks: stopped, gone, or disconnected."""
        ranks = range(self._world.size)
        silent = [str(rank) for rank in ranks if self._size(rank) <= self._sizes_before[rank]]
        shown = ", ".join(silent[:NUM_RANKS_SHOWN]) + (", …" if len(silent) > NUM_RANKS_SHOWN else "")
        return f"no stacks from rank {shown}: look there first; " if silent else ""

    def _advice(self) -> str:
        return (
            f"leaving with code {EXIT_CODE}: {self._path.parent} shows where every rank was; the same command "
            "continues from the newest checkpoint; if it was only slow, raise hang.timeout_s "
            "or hang.first_step_timeout_s"
        )

    def _size(self, rank: int) -> int:
        try:
            return self._folder.stacks(rank).stat().st_size
        except OSError:
            return 0
