"""Processes that hang, hold the interpreter or lose a peer: every one of them leaves, and tells where it stood.

Each rank is a fork of its own, whose exit code and words on stderr are what a launcher and a user would see.
"""

import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sft.config import TrainConfig
from sft.errors import SftError
from sft.train import watchdog as watchdog_module
from sft.train.patience import STEP
from sft.train.peer_errors import as_peer_errors
from sft.train.watchdog import Watchdog, stacks_path
from sft.train.world import World
from tests.conftest import MakeConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="POSIX timers and process descriptors")

LIMIT_S = 1.0
TOO_LATE_S = 30.0
FOR_EVER_S = 600


@dataclass(frozen=True)
class Rank:
    """A process that a test started."""

    pid: int
    stderr_file: Path
    stacks_file: Path

    def exit_code(self) -> int:
        """How it left; negative for a signal. Fails if it did not within TOO_LATE_S."""
        descriptor = os.pidfd_open(self.pid)
        has_left, _, _ = select.select([descriptor], [], [], TOO_LATE_S)
        os.close(descriptor)
        assert has_left, f"still there after {TOO_LATE_S} s"
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text()

    @property
    def stacks(self) -> str:
        return self.stacks_file.read_text()


Work = Callable[[Watchdog], object]
Start = Callable[..., list[Rank]]


@pytest.fixture
def start(tmp_path: Path, tiny_config: MakeConfig) -> Iterator[Start]:
    """Starts one rank per piece of work; none outlives the test."""
    started: list[Rank] = []
    config = tiny_config(hang_timeout_s=LIMIT_S, first_step_timeout_s=LIMIT_S)

    def start(*work: Work, tear_down: Callable[[], object] = lambda: None) -> list[Rank]:
        for number, task in enumerate(work):
            stderr, world = tmp_path / f"stderr-{number}.txt", World(number, len(work))
            pid = os.fork()
            if pid == 0:
                os._exit(_live(stderr, tmp_path, world, config, task, tear_down))
            started.append(Rank(pid, stderr, stacks_path(tmp_path, number)))
        return started

    yield start
    for rank in started:
        try:
            os.kill(rank.pid, signal.SIGKILL)
            os.waitpid(rank.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def _live(
    stderr: Path, folder: Path, world: World, config: TrainConfig, work: Work, tear_down: Callable[[], object]
) -> int:
    """The life of a rank, as a command would lead it."""
    os.dup2(os.open(stderr, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    faulthandler.disable()
    try:
        if world.size > 1:
            dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=world.rank, world_size=world.size)
            dist.barrier()
        with Watchdog(folder, world, config) as watchdog, as_peer_errors():
            work(watchdog)
    except SftError as error:
        os.write(2, f"sft: {error}\n".encode())
        tear_down()
        return error.exit_code
    except Exception:  # noqa: BLE001  a fork must not go on as a second pytest
        os.write(2, traceback.format_exc().encode())
        return 1
    return 0


# ------------------------------------------------------------------------------------------------ what ranks do


def wait_for_ever(_: Watchdog) -> None:
    threading.Event().wait()


def hold_the_interpreter(_: Watchdog) -> None:
    ctypes.PyDLL(None).sleep(FOR_EVER_S)


def crash(_: Watchdog) -> None:
    ctypes.string_at(0)


def be_killed(_: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_stopped_and_join_late(watchdog: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    join_the_others(watchdog)


def leave_early(_: Watchdog) -> None:
    os._exit(0)


def join_the_others(_: Watchdog) -> None:
    dist.all_reduce(torch.zeros(1))


def train_quickly(watchdog: Watchdog) -> None:
    """Beats for longer than a process without beats would live."""
    pause = threading.Event()
    for step in range(1, 25):
        watchdog.beat(STEP, step)
        pause.wait(LIMIT_S / 10)


# ------------------------------------------------------------------------------------------------ one process


def test_process_that_hangs_leaves_with_71_and_its_stacks(start: Start) -> None:
    (rank,) = start(wait_for_ever)
    assert rank.exit_code() == 71
    assert "in wait_for_ever" in rank.stacks
    assert rank.stacks.count("no progress for") == 1
    warning, last = rank.stderr.splitlines()
    assert str(rank.stacks_file) in warning
    assert "leaving with code 71" in last


def test_process_that_holds_the_interpreter_lock_leaves_with_71_and_its_stacks(start: Start) -> None:
    (rank,) = start(hold_the_interpreter)
    assert rank.exit_code() == 71
    assert "in hold_the_interpreter" in rank.stacks
    assert "its interpreter does not answer; leaving with code 71" in rank.stderr


def test_process_that_crashes_leaves_its_stacks(start: Start) -> None:
    (rank,) = start(crash)
    assert rank.exit_code() == -signal.SIGSEGV
    assert "in crash" in rank.stacks


def test_process_that_beats_lives_on(start: Start) -> None:
    (rank,) = start(train_quickly)
    assert rank.exit_code() == 0
    assert not rank.stacks_file.exists()
    assert rank.stderr == ""


# ------------------------------------------------------------------------------------------------ several


def test_rank_that_was_stopped_is_named_by_the_other_which_leaves_with_71(start: Start) -> None:
    waiting, stopped = start(join_the_others, be_stopped_and_join_late)
    assert waiting.exit_code() == 71
    assert "in join_the_others" in waiting.stacks
    assert "no stacks from rank 1: look there first" in waiting.stderr
    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.exit_code() == 71


def test_all_ranks_leave_their_stacks_when_one_hangs(start: Start) -> None:
    ranks = start(join_the_others, wait_for_ever, join_the_others)
    assert [rank.exit_code() for rank in ranks] == [71, 71, 71]
    assert ["in wait_for_ever" in rank.stacks for rank in ranks] == [False, True, False]
    assert ["in join_the_others" in rank.stacks for rank in ranks] == [True, False, True]
    assert not any("no stacks from" in rank.stderr for rank in ranks)


def test_all_ranks_leave_their_stacks_when_one_holds_its_interpreter_lock(start: Start) -> None:
    ranks = start(join_the_others, hold_the_interpreter)
    assert [rank.exit_code() for rank in ranks] == [71, 71]
    assert "in hold_the_interpreter" in ranks[1].stacks


@pytest.mark.parametrize("end", [leave_early, be_killed], ids=["exits with code 0", "is killed"])
def test_rank_that_is_gone_ends_the_others_at_once_without_the_watchdog(end: Work, start: Start) -> None:
    staying, gone = start(join_the_others, end)
    assert gone.exit_code() in (0, -signal.SIGKILL)
    assert staying.exit_code() == 71
    assert "sft: lost another rank: " in staying.stderr
    assert "no progress" not in staying.stderr


def test_rank_that_lost_another_and_hangs_while_it_tears_down_leaves_all_the_same(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "LEAVING_S", LIMIT_S / 2)
    staying, _ = start(join_the_others, leave_early, tear_down=partial(ctypes.PyDLL(None).sleep, FOR_EVER_S))
    assert staying.exit_code() == 71
    assert "sft: lost another rank: " in staying.stderr
