"""Processes that hang, hold the interpreter or lose a peer: every one of them leaves, and tells where it stood.

Each rank is a fork of its own, whose exit code and words on stderr are what a launcher and a user would see.
"""

import ctypes
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sft.train import loop
from sft.train.distributed.errors import as_peer_errors
from sft.train.distributed.world import World
from sft.train.monitor import stragglers
from sft.train.monitor import watchdog as watchdog_module
from sft.train.monitor.hang_limit import STEP
from sft.train.monitor.watchdog import Watchdog
from tests.conftest import MakeConfig
from tests.support.process import TOO_LATE_S, Rank, Start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="POSIX timers and process descriptors")

LIMIT_S = 1.0
FOR_EVER_S = 600

Work = Callable[[Watchdog], object]


@pytest.fixture
def ranks(start: Start, tiny_config: MakeConfig) -> Start:
    """Starts ranks that are connected, watched closely, and then do their piece of work."""
    config = tiny_config(hang__timeout_s=LIMIT_S, hang__first_step_timeout_s=LIMIT_S)

    def live(work: Work, world: World, folder: Path) -> None:
        if world.size > 1:
            dist.init_process_group("gloo", f"file://{folder}/meeting", rank=world.rank, world_size=world.size)
            dist.barrier()
        with Watchdog(folder / "run", world, config.hang) as watchdog, as_peer_errors():
            work(watchdog)

    return lambda *work, **more: start(*(partial(live, task) for task in work), **more)


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


def test_process_that_hangs_leaves_with_71_and_its_stacks(ranks: Start) -> None:
    (rank,) = ranks(wait_for_ever)
    assert rank.exit_code() == 71
    assert "in wait_for_ever" in rank.stacks
    assert rank.stacks.count("no progress for") == 1
    warning, last = rank.stderr.splitlines()
    assert str(rank.stacks_file) in warning
    assert "leaving with code 71" in last


def test_process_that_holds_the_interpreter_lock_leaves_with_71_and_its_stacks(ranks: Start) -> None:
    (rank,) = ranks(hold_the_interpreter)
    assert rank.exit_code() == 71
    assert "in hold_the_interpreter" in rank.stacks
    assert "its interpreter does not answer; leaving with code 71" in rank.stderr


def test_process_that_crashes_leaves_its_stacks(ranks: Start) -> None:
    (rank,) = ranks(crash)
    assert rank.exit_code() == -signal.SIGSEGV
    assert "in crash" in rank.stacks


def test_process_that_beats_lives_on(ranks: Start) -> None:
    (rank,) = ranks(train_quickly)
    assert rank.exit_code() == 0
    assert not rank.stacks_file.exists()
    assert rank.stderr == ""


# ------------------------------------------------------------------------------------------------ several


def test_rank_that_was_stopped_is_named_by_the_other_which_leaves_with_71(ranks: Start) -> None:
    waiting, stopped = ranks(join_the_others, be_stopped_and_join_late)
    assert waiting.exit_code() == 71
    assert "in join_the_others" in waiting.stacks
    assert "no stacks from rank 1: look there first" in waiting.stderr
    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.exit_code() == 71


def test_all_ranks_leave_their_stacks_when_one_hangs(ranks: Start) -> None:
    all_ranks = ranks(join_the_others, wait_for_ever, join_the_others)
    assert [rank.exit_code() for rank in all_ranks] == [71, 71, 71]
    assert ["in wait_for_ever" in rank.stacks for rank in all_ranks] == [False, True, False]
    assert ["in join_the_others" in rank.stacks for rank in all_ranks] == [True, False, True]
    assert not any("no stacks from" in rank.stderr for rank in all_ranks)


def test_all_ranks_leave_their_stacks_when_one_holds_its_interpreter_lock(ranks: Start) -> None:
    all_ranks = ranks(join_the_others, hold_the_interpreter)
    assert [rank.exit_code() for rank in all_ranks] == [71, 71]
    assert "in hold_the_interpreter" in all_ranks[1].stacks


@pytest.mark.parametrize("end", [leave_early, be_killed], ids=["exits with code 0", "is killed"])
def test_rank_that_is_gone_ends_the_others_at_once_without_the_watchdog(end: Work, ranks: Start) -> None:
    staying, gone = ranks(join_the_others, end)
    assert gone.exit_code() in (0, -signal.SIGKILL)
    assert staying.exit_code() == 71
    assert "sft: lost another rank: " in staying.stderr
    assert "no progress" not in staying.stderr


def test_rank_that_lost_another_and_hangs_while_it_tears_down_leaves_all_the_same(
    ranks: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "LEAVING_S", LIMIT_S / 2)
    staying, _ = ranks(join_the_others, leave_early, tear_down=partial(ctypes.PyDLL(None).sleep, FOR_EVER_S))
    assert staying.exit_code() == 71
    assert "sft: lost another rank: " in staying.stderr


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture
def run(start: Start, tiny_config: MakeConfig, tmp_path: Path) -> Callable[[Callable[[int], object]], list[Rank]]:
    """Starts a run of two ranks of which the second one does something whenever it gets its batches of a step."""
    config = tiny_config(out=str(tmp_path / "run"), hang__timeout_s=LIMIT_S, hang__first_step_timeout_s=TOO_LATE_S)
    original = loop.shared_batches

    def live(disturb: Callable[[int], object], world: World, folder: Path) -> None:
        steps = itertools.count(1)

        def disturbed(*arguments: Any, **more: Any) -> Iterator[Any]:
            disturb(next(steps))
            yield from original(*arguments, **more)

        loop.shared_batches = disturbed if world.rank == 1 else original
        loop.train(config, world=world, environ={}, meeting_place=f"file://{folder}/meeting")

    return lambda disturb: start(partial(live, disturb), partial(live, disturb))


def test_run_with_a_loader_that_hangs_on_one_rank_ends_with_71_everywhere(run: Any) -> None:
    all_ranks = run(lambda step: step < 4 or threading.Event().wait())
    assert [rank.exit_code() for rank in all_ranks] == [71, 71]
    assert ["in disturbed" in rank.stacks for rank in all_ranks] == [False, True]
    assert all("in train_step" in rank.stacks and "in step 4 (step)" in rank.stacks for rank in all_ranks)


def test_run_with_a_rank_that_was_stopped_ends_with_71_and_names_it(run: Any) -> None:
    waiting, _ = run(lambda step: step < 4 or os.kill(os.getpid(), signal.SIGSTOP))
    assert waiting.exit_code() == 71
    assert "no stacks from rank 1: look there first" in waiting.stderr


def test_run_with_a_slow_rank_names_it_and_goes_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stragglers.SlowRanks.__init__, "__defaults__", (2,))
    all_ranks = run(lambda _: threading.Event().wait(0.2))
    assert [rank.exit_code() for rank in all_ranks] == [0, 0]
    assert all_ranks[0].stderr.count("rank 1 on") == 1
    assert "times as long as the median rank" in all_ranks[0].stderr
    assert "median rank" not in all_ranks[1].stderr
