"""Processes that live as ranks do: forks of their own, with the exit code and the words that a launcher would see."""

import faulthandler
import logging
import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sft.errors import SftError
from sft.train.distributed.world import World
from sft.train.run_layout import RunLayout

TOO_LATE_S = 30.0
STDERR = 2


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


Life = Callable[[World, Path], object]
"""What a rank does from begin to end, with a folder that all share."""
Start = Callable[..., list[Rank]]


@contextmanager
def starter(folder: Path) -> Iterator[Start]:
    """Starts one rank per life, `run` in the folder being their run folder; none outlives the block."""
    started: list[Rank] = []

    def start(*lives: Life, tear_down: Callable[[], object] = lambda: None) -> list[Rank]:
        for number, life in enumerate(lives):
            stderr, world = folder / f"stderr-{number}.txt", World(number, len(lives), number)
            pid = os.fork()
            if pid == 0:
                os._exit(_live(stderr, folder, world, life, tear_down))
            started.append(Rank(pid, stderr, RunLayout(folder / "run").stacks(number)))
        return started

    yield start
    for rank in started:
        try:
            os.kill(rank.pid, signal.SIGKILL)
            os.waitpid(rank.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def _live(stderr: Path, folder: Path, world: World, life: Life, tear_down: Callable[[], object]) -> int:
    """The life of a rank, as a command would lead it."""
    os.dup2(os.open(stderr, os.O_CREAT | os.O_WRONLY | os.O_APPEND), STDERR)
    logging.basicConfig(stream=os.fdopen(STDERR, "w", closefd=False), force=True)
    torch.set_num_threads(1)
    faulthandler.disable()
    try:
        life(world, folder)
    except SftError as error:
        os.write(STDERR, f"sft: {error}\n".encode())
        tear_down()
        return error.exit_code
    except Exception:  # noqa: BLE001  a fork must not go on as a second pytest
        os.write(STDERR, traceback.format_exc().encode())
        return 1
    return 0
