"""Process chunks in worker processes; results are in order and memory is bounded."""

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
from sft.config.data import BuildConfig
from sft.data.build.chunk import Chunk, ChunkFile, write_chunk
from sft.data.build.worker import Ingredients, Worker, wanted_check_share
from sft.errors import PeerError, StorageError

Find = Callable[[Path], ChunkFile | None]

_load: Callable[[], Worker] | None = None
"""In a process of the pool: returns its Worker, which is loaded once, since loading takes longer than a chunk."""
_timeout_s = 600.0
_stacks: TextIO | None = None
"""The file to which this process writes its stack trace on a timeout: one file per process."""


def run_chunks(
    config: BuildConfig,
    recipes: Path,
    work: Path,
    chunks: Iterator[Chunk],
    tokenizer: ChatTokenizer | None = None,
    expected: Ingredients | None = None,
) -> Generator[ChunkFile]:
    """Finish all chunks, in order, with as many processes as the config sets; chunks that are on disk are reused.

    A `tokenizer` that is already loaded is used if the work is done in this process.

    Raises: PeerError if a worker process dies, ConfigError if a file that it loads has changed.
    """
    # One tokenizer thread per process: the user sets the number of processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    # NumPy's idle threads would spin for a quarter of a second at every worker's start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    num_workers = config.workers or num_cores()
    find = functools.partial(_usable, least_share=wanted_check_share(config))
    if num_workers == 1:
        load = functools.cache(functools.partial(Worker, config, recipes, tokenizer, expected))
        yield from _one_by_one(load, find, work, chunks)
        return
    with tempfile.TemporaryDirectory() as stacks:
        start = (os.getpid(), config, recipes, expected, Path(stacks))
        pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start, start)
        try:
            yield from _in_order(pool, find, work, chunks, ahead=2 * num_workers)
        except BrokenProcessPool as error:
            raise _died(config, Path(stacks)) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _died(config: BuildConfig, stacks: Path) -> PeerError:
    for path in sorted(stacks.iterdir()):
        if stack := path.read_text().strip():
            return PeerError(
                f"a worker process needed more than chunk_timeout_s={config.chunk_timeout_s:g} for one chunk\n{stack}",
                hint="the stack shows where; repair that code, or raise chunk_timeout_s",
            )
    return PeerError("a worker process died", hint="check memory, or use fewer: workers=1")


def _usable(path: Path, least_share: float) -> ChunkFile | None:
    """The finished chunk, if it exists and at least the wanted share of it was compared with the reference."""
    chunk = ChunkFile.open(path)
    return chunk if chunk is not None and chunk.header["checked_share"] >= least_share else None


def num_cores() -> int:
    """The number of cores that this process may use, or of all cores if the system does not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_by_one(load: Callable[[], Worker], find: Find, work: Path, chunks: Iterator[Chunk]) -> Iterator[ChunkFile]:
    for chunk in chunks:
        path = work / chunk.name
        finished = find(path)
        if finished is None:
            write_chunk(path, load().run(chunk))
        yield finished or _opened(path)


def _start(parent: int, config: BuildConfig, recipes: Path, expected: Ingredients | None, stacks: Path) -> None:
    global _load, _timeout_s, _stacks
    _timeout_s = config.chunk_timeout_s
    _stacks = (stacks / f"{os.getpid()}.txt").open("w")
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    # Loaded with the first chunk: an error there reaches the parent, while here it would only break the pool.
    _load = functools.cache(functools.partial(Worker, config, recipes, None, expected))


def _end_with_parent(parent: int) -> None:
    """Exit when the parent process is gone, even if it was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(chunk: Chunk, path: Path) -> None:
    if _load is None or _stacks is None:
        raise RuntimeError("the pool did not start its worker")
    # This works even while a regular expression that never ends holds the GIL.
    faulthandler.dump_traceback_later(_timeout_s, exit=True, file=_stacks)
    try:
        write_chunk(path, _load().run(chunk))
    finally:
        faulthandler.cancel_dump_traceback_later()


def _in_order(pool: Executor, find: Find, work: Path, chunks: Iterator[Chunk], ahead: int) -> Iterator[ChunkFile]:
    """Finished chunks in order, with the rows of at most `ahead` chunks in memory."""
    waiting: deque[tuple[Path, ChunkFile | Future[None]]] = deque()
    for chunk in chunks:
        path = work / chunk.name
        waiting.append((path, find(path) or pool.submit(_run, chunk, path)))
        if len(waiting) > ahead:
            yield _finished(*waiting.popleft())
    while waiting:
        yield _finished(*waiting.popleft())


def _finished(path: Path, chunk: ChunkFile | Future[None]) -> ChunkFile:
    if isinstance(chunk, ChunkFile):
        return chunk
    chunk.result()
    return _opened(path)


def _opened(path: Path) -> ChunkFile:
    """Read a chunk back right after it was written, to notice a damaged disk at once."""
    chunk = ChunkFile.open(path)
    if chunk is None:
        raise StorageError("differs from what was written", on=path, hint="check the disk, then build again")
    return chunk
