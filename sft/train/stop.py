"""Three ways to request a run to stop: a signal, a file named STOP in its folder, the end of its job's time.

All of them only set a flag, which the loop reads between two steps: nothing is ever saved inside a handler.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sft.errors import ConfigError, StopRequested
from sft.train.distributed.ranks import RankGroup
from sft.train.run_layout import RunLayout

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

Clock = Callable[[], float]


class Stop:
    """Whether, and why, the run should stop."""

    def __init__(self, run_folder: Path, deadline_s: float = math.inf, clock: Clock = time.monotonic) -> None:
        self._file, self._deadline_s, self._clock = RunLayout(run_folder).stop_file, deadline_s, clock
        self._signal: str | None = None
        self.is_agreed = False
        """True once all processes know that one of them has a request to stop."""

    @property
    def is_asked(self) -> bool:
        """True if this process has a reason to stop."""
        return self.reason() is not None

    def reason(self) -> str | None:
        """Why to stop now, or None."""
        if self._signal:
            return f"received {self._signal}"
        if self._file.exists():
            return f"found {self._file}"
        return "the job's time is nearly up" if self._clock() >= self._deadline_s else None

    def agree(self, is_asked: bool) -> None:
        """Set what all processes have agreed on: whether one of them has a request to stop."""
        self.is_agreed = is_asked

    def in_agreement(self, ranks: RankGroup) -> None:
        """Interrupt what all processes are doing if one of them has a request to stop.

        Raises: StopRequested, on all of them.
        """
        if ranks.gather([self.is_asked]).any():
            self.agree(True)
            raise StopRequested("asked to stop")

    def clear_file(self) -> None:
        """Delete the STOP file once the run stops, so that the next start continues."""
        self._file.unlink(missing_ok=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat signals as requests to stop while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets only the main thread install handlers
            return
        # A signal that the parent process ignored, as nohup does with SIGHUP, stays ignored.
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:  # a second Ctrl-C does not wait for a checkpoint
            signal.signal(signal.SIGINT, signal.default_int_handler)


def job_deadline(
    environ: Mapping[str, str], margin_s: float, *, clock: Clock = time.monotonic, wall_clock: Clock = time.time
) -> float:
    """The time on `clock` at which to stop because the SLURM job ends soon; infinity without a known end.

    The wall clock is read once: later corrections of it neither stop the run nor keep it going.
    """
    end = environ.get("SLURM_JOB_END_TIME")
    if end is None:
        return math.inf
    try:
        return clock() + float(end) - wall_clock() - margin_s
    except ValueError:
        raise ConfigError(f"SLURM_JOB_END_TIME={end!r}: expected seconds since 1970") from None
