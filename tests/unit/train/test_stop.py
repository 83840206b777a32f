import math
import os
import signal
from pathlib import Path

import pytest

from sft.errors import ConfigError
from sft.train.stop import SIGNALS, Stop, job_deadline


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_a_wish_to_stop_and_the_old_handler_comes_back(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    stop = Stop(tmp_path)
    with stop.listening():
        assert stop.reason() is None
        os.kill(os.getpid(), number)
        assert stop.reason() == f"received {number.name}"
    assert signal.getsignal(number) is before


def test_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    with Stop(tmp_path).listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_several_other_signals_are_one_wish(tmp_path: Path) -> None:
    stop = Stop(tmp_path)
    with stop.listening():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.reason() == "received SIGTERM"


def test_stop_file_is_obeyed_until_it_is_cleared(tmp_path: Path) -> None:
    stop = Stop(tmp_path)
    (tmp_path / "STOP").touch()
    assert "STOP" in str(stop.reason())
    stop.clear_file()
    assert stop.reason() is None


def test_deadline_is_the_margin_before_the_end_of_the_job(tmp_path: Path) -> None:
    now_s = 50.0
    environ = {"SLURM_JOB_END_TIME": "1000"}
    deadline_s = job_deadline(environ, 300, clock=lambda: now_s, wall_clock=lambda: 600.0)
    stop = Stop(tmp_path, deadline_s, clock=lambda: now_s)
    now_s = 149.0
    assert stop.reason() is None
    now_s = 150.0
    assert stop.reason() == "the job's time is nearly up"


def test_there_is_no_deadline_outside_a_job() -> None:
    assert job_deadline({}, 300) == math.inf


def test_unreadable_end_of_the_job_is_refused() -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME='soon'"):
        job_deadline({"SLURM_JOB_END_TIME": "soon"}, 300)
