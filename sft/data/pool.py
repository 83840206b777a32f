"""Units through worker processes, finished ones in order, memory bounded."""

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from sft.chat.tokenizer import ChatTokenizer
from sft.config import BuildConfig
from sft.data.unit import Unit, UnitFile, write_unit
from sft.data.worker import Worker
from sft.errors import PeerError, StorageError

_worker: Worker | None = None
"""The worker of this process, if it is one of a pool's: loading one per unit would cost more than the unit."""


def run_units(
    config: BuildConfig, recipes: Path, work: Path, units: Iterator[Unit], tokenizer: ChatTokenizer | None = None
) -> Generator[UnitFile]:
    """All units in order, finished, by as many processes as the config says; those on disk are not made again.

    A `tokenizer` that is loaded already serves if the work is done in this process.

    Raises: PeerError if a worker process dies.
    """
    # One tokenizer thread per process: the processes are the parallelism, and their number is the user's.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    num_workers = config.workers or _num_cores()
    if num_workers == 1:
        yield from _one_by_one(config, recipes, work, units, tokenizer)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start, (os.getpid(), config, recipes))
    try:
        yield from _in_order(pool, work, units, ahead=2 * num_workers)
    except BrokenProcessPool as error:
        raise PeerError("a worker process died", hint="check memory, or use fewer: workers=1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _num_cores() -> int:
    """The cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_by_one(
    config: BuildConfig, recipes: Path, work: Path, units: Iterator[Unit], tokenizer: ChatTokenizer | None
) -> Iterator[UnitFile]:
    worker = None
    for unit in units:
        path = work / unit.name
        finished = UnitFile.open(path)
        if finished is None:
            worker = worker or Worker(config, recipes, tokenizer)
            write_unit(path, worker.run(unit))
        yield finished or _opened(path)


def _start(parent: int, config: BuildConfig, recipes: Path) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    _worker = Worker(config, recipes)


def _end_with_parent(parent: int) -> None:
    """A worker never outlives the process that feeds it, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(unit: Unit, path: Path) -> None:
    if _worker is None:
        raise RuntimeError("the pool did not start its worker")
    write_unit(path, _worker.run(unit))


def _in_order(pool: Executor, work: Path, units: Iterator[Unit], ahead: int) -> Iterator[UnitFile]:
    """Finished units in order, the rows of no more than `ahead` of them in memory."""
    waiting: deque[tuple[Path, UnitFile | Future[None]]] = deque()
    for unit in units:
        path = work / unit.name
        waiting.append((path, UnitFile.open(path) or pool.submit(_run, unit, path)))
        if len(waiting) > ahead:
            yield _finished(*waiting.popleft())
    while waiting:
        yield _finished(*waiting.popleft())


def _finished(path: Path, unit: UnitFile | Future[None]) -> UnitFile:
    if isinstance(unit, UnitFile):
        return unit
    unit.result()
    return _opened(path)


def _opened(path: Path) -> UnitFile:
    """A unit that was just written, read back: what the disk garbled is told now, not after hours."""
    unit = UnitFile.open(path)
    if unit is None:
        raise StorageError("reads back other than it was written", on=path, hint="check the disk, then build again")
    return unit
