"""The timers ring in processes of their own, since what they call is meant to end them."""

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft.train.monitor.kernel_timer import KernelTimer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="POSIX timers")

SOON_S, LATER_S = 0.05, 60.0


def exit_code(timer_s: float, *, again_s: float | None = None, is_closed: bool = False, within_s: float) -> int:
    """How a process ends whose timer leaves with code 7, and which by itself would leave with code 0."""
    pid = os.fork()
    if pid == 0:
        timer = KernelTimer("_exit", 7)
        timer.set(timer_s)
        if again_s is not None:
            timer.set(again_s)
        if is_closed:
            timer.close()
        time.sleep(within_s)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_timer_calls_the_function_when_its_time_is_over() -> None:
    assert exit_code(SOON_S, within_s=LATER_S) == 7


def test_timer_that_is_set_anew_forgets_the_time_before() -> None:
    assert exit_code(SOON_S, again_s=LATER_S, within_s=4 * SOON_S) == 0
    assert exit_code(2 * LATER_S, again_s=SOON_S, within_s=LATER_S) == 7


def test_timer_set_to_infinity_or_closed_never_rings() -> None:
    assert exit_code(SOON_S, again_s=float("inf"), within_s=4 * SOON_S) == 0
    assert exit_code(SOON_S, is_closed=True, within_s=4 * SOON_S) == 0


def test_text_reaches_the_function(tmp_path: Path) -> None:
    said, pid = tmp_path / "stderr", os.fork()
    if pid == 0:
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
        words, end = KernelTimer("warnx", b"last words"), KernelTimer("_exit", 7)
        words.set(SOON_S)
        end.set(20 * SOON_S)
        select.select([], [], [], LATER_S)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert said.read_text().endswith(": last words\n")


def kernel_timers() -> int:
    """How many timers the kernel holds for this process."""
    return Path("/proc/self/timers").read_text().count("notify:")


def test_missing_function_is_no_timer_and_no_error() -> None:
    before = kernel_timers()
    timer, other = KernelTimer("no_such_function_in_any_library", 1), KernelTimer("_exit", 7)
    timer.set(0.0)
    assert kernel_timers() == before + 1  # the other, which can be made
    other.close()
    timer.close()
    assert kernel_timers() == before


HOLD = "import ctypes; ctypes.PyDLL(None).sleep(60)"
"""Never lets go of the interpreter, as a call into a library that hangs."""
IMPORT = "from sft.train.monitor.kernel_timer import KernelTimer"
WAYS_TO_END = {
    "our timer": (f"{IMPORT}; timer = KernelTimer('_exit', 71); timer.set({SOON_S})", 71),
    # If this is no longer 1 the module is not needed; see there.
    "faulthandler": (f"import faulthandler; faulthandler.dump_traceback_later({SOON_S}, exit=True)", 1),
}


@pytest.mark.parametrize(("start", "code"), WAYS_TO_END.values(), ids=WAYS_TO_END)
def test_only_our_timer_ends_with_our_code_while_the_interpreter_is_held(start: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", f"{start}; {HOLD}"], capture_output=True, timeout=LATER_S, check=False
    )
    assert ended.returncode == code
