"""Units through worker processes, finished ones in order, memory bounded."""

import faulthandler
import functools
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TextIO

from sft.chat.tokenizer import ChatTokenizer
from sft.config import BuildConfig
from sft.data.build.chunk import Unit, UnitFile, write_unit
from sft.data.build.worker import Ingredients, Worker, wanted_check_share
from sft.errors import PeerError, StorageError

Find = Callable[[Path], UnitFile | None]

_load: Callable[[], Worker] | None = None
"""Loads the worker of this process, if it is one of a pool's, once: doing so per unit would cost more than the unit."""
_timeout_s = 600.0
_stacks: TextIO | None = None
"""Where this process writes its stack if it is stuck: one file each, so that two never mix their lines."""


def run_units(
    config: BuildConfig,
    recipes: Path,
    work: Path,
    units: Iterator[Unit],
    tokenizer: ChatTokenizer | None = None,
    expected: Ingredients | None = None,
) -> Generator[UnitFile]:
    """All units in order, finished, by as many processes as the config says; those on disk are not made again.

    A `tokenizer` that is loaded already serves if the work is done in this process.

    Raises: PeerError if a worker process dies, ConfigError if what it loads is not what is expected.
    """
    # One tokenizer thread per process: the processes are the parallelism, and their number is the user's.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    # NumPy's would spin for a quarter of a second of every worker's start, with nothing to do.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    num_workers = config.workers or _num_cores()
    find = functools.partial(_usable, least_share=wanted_check_share(config))
    if num_workers == 1:
        load = functools.cache(functools.partial(Worker, config, recipes, tokenizer, expected))
        yield from _one_by_one(load, find, work, units)
        return
    with tempfile.TemporaryDirectory() as stacks:
        start = (os.getpid(), config, recipes, expected, Path(stacks))
        pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start, start)
        try:
            yield from _in_order(pool, find, work, units, ahead=2 * num_workers)
        except BrokenProcessPool as error:
            raise _died(config, Path(stacks)) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _died(config: BuildConfig, stacks: Path) -> PeerError:
    for path in sorted(stacks.iterdir()):
        if stack := path.read_text().strip():
            return PeerError(
                f"a worker process needed more than unit_timeout_s={config.unit_timeout_s:g} for one unit\n{stack}",
                hint="see where it was; repair that, or raise unit_timeout_s",
            )
    return PeerError("a worker process died", hint="check memory, or use fewer: workers=1")


def _usable(path: Path, least_share: float) -> UnitFile | None:
    """The finished unit, if there is one and as much of it was compared with the reference as is asked for."""
    unit = UnitFile.open(path)
    return unit if unit is not None and unit.header["checked_share"] >= least_share else None


def _num_cores() -> int:
    """The cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_by_one(load: Callable[[], Worker], find: Find, work: Path, units: Iterator[Unit]) -> Iterator[UnitFile]:
    for unit in units:
        path = work / unit.name
        finished = find(path)
        if finished is None:
            write_unit(path, load().run(unit))
        yield finished or _opened(path)


def _start(parent: int, config: BuildConfig, recipes: Path, expected: Ingredients | None, stacks: Path) -> None:
    global _load, _timeout_s, _stacks
    _timeout_s = config.unit_timeout_s
    _stacks = (stacks / f"{os.getpid()}.txt").open("w")
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    # Loaded with the first unit: an error travels home from there, while here it would only break the pool.
    _load = functools.cache(functools.partial(Worker, config, recipes, None, expected))


def _end_with_parent(parent: int) -> None:
    """A worker never outlives the process that feeds it, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(unit: Unit, path: Path) -> None:
    if _load is None or _stacks is None:
        raise RuntimeError("the pool did not start its worker")
    # Works even if a regular expression that never ends holds the interpreter.
    faulthandler.dump_traceback_later(_timeout_s, exit=True, file=_stacks)
    try:
        write_unit(path, _load().run(unit))
    finally:
        faulthandler.cancel_dump_traceback_later()


def _in_order(pool: Executor, find: Find, work: Path, units: Iterator[Unit], ahead: int) -> Iterator[UnitFile]:
    """Finished units in order, the rows of no more than `ahead` of them in memory."""
    waiting: deque[tuple[Path, UnitFile | Future[None]]] = deque()
    for unit in units:
        path = work / unit.name
        waiting.append((path, find(path) or pool.submit(_run, unit, path)))
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
