"""Several processes of a run in one test: forks of this one that meet at a file."""

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the optimizer loads it at its first step; once here is faster than once in every fork

from sft.errors import SftError
from sft.train.distributed.ranks import connected
from sft.train.distributed.world import World

TIMEOUT_S = 60.0


class RankFailed(Exception):
    """A process of the run ended otherwise than expected."""


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(ranks, *arguments)` returns in each of `size` processes, as JSON values.

    Raises: RankFailed with the traces of all processes if one did not end well.
    """

    def work(world: World, place: str) -> Any:
        with connected(world, torch.device("cpu"), timeout_s=TIMEOUT_S, init_method=place) as ranks:
            return function(ranks, *arguments)

    return finished(fork_ranks(size, work))


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    exit_code: int
    """Negative for a signal."""
    text: str
    """What it returned, as JSON, or the trace of its error."""


def fork_ranks(size: int, work: Callable[[World, str], Any]) -> list[Ended]:
    """Let `size` processes do `work(world, meeting_place)`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pids = [_fork(World(rank, size, rank), folder, work) for rank in range(size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        files = [folder / f"{rank}.txt" for rank in range(size)]
        return [Ended(code, file.read_text() if file.exists() else "") for code, file in zip(codes, files, strict=True)]


def finished(ranks: list[Ended]) -> list[Any]:
    """The results of processes that should have ended well.

    Raises: RankFailed with all traces if one did not.
    """
    if any(rank.exit_code for rank in ranks):
        raise RankFailed("\n".join(f"{number}: {rank.exit_code}\n{rank.text}" for number, rank in enumerate(ranks)))
    return [json.loads(rank.text) for rank in ranks]


def _fork(world: World, folder: Path, work: Callable[[World, str], Any]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    file, code = folder / f"{world.rank}.txt", 1
    try:
        signal.alarm(int(2 * TIMEOUT_S))  # a test that hangs ends
        torch.set_num_threads(1)
        file.write_text(json.dumps(work(world, f"file://{folder}/meeting")))
        code = 0
    except BaseException as error:  # noqa: BLE001 - the fork must never return into the test
        file.write_text(traceback.format_exc())
        code = error.exit_code if isinstance(error, SftError) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)
