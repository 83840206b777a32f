"""Chunks through worker processes, results in order, memory bounded."""

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from sft.config import BuildConfig
from sft.data.worker import Chunk, ChunkResult, Worker
from sft.errors import PeerError

_worker: Worker | None = None
"""The worker of this process, if it is one of a pool's: loading one per chunk would cost more than the chunk."""


def run_chunks(config: BuildConfig, recipes: Path, chunks: Iterator[Chunk]) -> Generator[ChunkResult]:
    """The results of all chunks in order, from as many processes as the config says.

    Raises: PeerError if a worker process dies.
    """
    # One tokenizer thread per process: the processes are the parallelism, and their number is the user's.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    num_workers = config.workers or _num_cores()
    if num_workers == 1:
        yield from map(Worker(config, recipes).run, chunks)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start, (os.getpid(), config, recipes))
    try:
        yield from _in_order(pool, chunks, ahead=2 * num_workers)
    except BrokenProcessPool as error:
        raise PeerError("a worker process died", hint="check memory, or use fewer: workers=1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _num_cores() -> int:
    """The cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(parent: int, config: BuildConfig, recipes: Path) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    _worker = Worker(config, recipes)


def _end_with_parent(parent: int) -> None:
    """End this process when the one that feeds it is gone, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(chunk: Chunk) -> ChunkResult:
    if _worker is None:
        raise RuntimeError("the pool did not start its worker")
    return _worker.run(chunk)


def _in_order(pool: Executor, chunks: Iterator[Chunk], ahead: int) -> Iterator[ChunkResult]:
    """Results in the order of the chunks, with no more than `ahead` chunks in memory."""
    waiting: deque[Future[ChunkResult]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_run, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
