"""Results come in the order of the chunks, and only a few chunks are in memory at once."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sft.config import BuildConfig
from sft.data import pool
from sft.data.worker import Chunk


class LazyExecutor:
    """Runs each job only when its result is asked for, and counts those that wait."""

    def __init__(self) -> None:
        self.waiting = self.most_waiting = 0

    def submit(self, function: Any, chunk: Chunk) -> Future[Any]:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        executor = self

        class Lazy(Future):  # type: ignore[type-arg]
            def result(self, _: float | None = None) -> Any:
                executor.waiting -= 1
                return function(chunk)

        return Lazy()


@pytest.fixture
def config() -> BuildConfig:
    return BuildConfig({}, "raw", "tokenizer.json", "shards")


def chunks(count: int) -> Iterator[Chunk]:
    for number in range(count):
        yield Chunk("talks", f"file {number}", [])


@pytest.mark.parametrize("count", [0, 1, 5, 6, 50])
def test_results_keep_the_order_and_chunks_are_bounded(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = LazyExecutor()
    monkeypatch.setattr(pool, "_run", lambda chunk: chunk.file)
    results = pool._in_order(executor, chunks(count), ahead=4)  # type: ignore[arg-type]
    assert list(results) == [f"file {number}" for number in range(count)]
    assert executor.most_waiting <= 5


def test_no_chunk_is_read_before_a_result_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_run", lambda chunk: chunk.file)
    source = chunks(50)
    results = pool._in_order(LazyExecutor(), source, ahead=4)  # type: ignore[arg-type]
    assert next(results) == "file 0"
    assert next(source).file == "file 5"


class CountingPool(LazyExecutor):
    """Stands for the pool of processes and notes how it was used."""

    def __init__(self, num_workers: int, *_: Any) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.end: dict[str, bool] = {}

    def shutdown(self, **how: bool) -> None:
        self.end = how


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[CountingPool]:
    """The pools that a run started."""
    made: list[CountingPool] = []

    def start(*arguments: Any) -> CountingPool:
        made.append(CountingPool(*arguments))
        return made[-1]

    monkeypatch.setattr(pool, "ProcessPoolExecutor", start)
    monkeypatch.setattr(pool, "_run", lambda chunk: chunk.file)
    return made


@pytest.mark.parametrize(("workers", "cores", "started"), [(3, 8, 3), (0, 5, 5), (2, 1, 2)])
def test_as_many_processes_start_as_were_asked_for(
    workers: int, cores: int, started: int, pools: list[CountingPool], config: BuildConfig, monkeypatch: Any
) -> None:
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    results = pool.run_chunks(replace(config, workers=workers), Path("recipes"), chunks(40))
    assert list(results) == [f"file {number}" for number in range(40)]
    (only,) = pools
    assert only.num_workers == started
    assert started < only.most_waiting <= 2 * started + 1
    assert only.end == {"wait": True, "cancel_futures": True}


def test_where_the_system_does_not_tell_the_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pool.os, "sched_getaffinity", raising=False)
    for counted, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(pool.os, "cpu_count", lambda counted=counted: counted)
        assert pool._num_cores() == expected


@pytest.mark.parametrize(("workers", "cores"), [(1, 8), (0, 1)])
def test_one_worker_is_this_process(
    workers: int, cores: int, pools: list[CountingPool], config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        def __init__(self, *_: Any) -> None: ...

        def run(self, chunk: Chunk) -> str:
            return chunk.file

    monkeypatch.setattr(pool, "Worker", Here)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    results = pool.run_chunks(replace(config, workers=workers), Path("recipes"), chunks(3))
    assert list(results) == ["file 0", "file 1", "file 2"]
    assert pools == []


def test_a_reader_that_stops_early_stops_the_processes(pools: list[CountingPool], config: BuildConfig) -> None:
    results = pool.run_chunks(replace(config, workers=2), Path("recipes"), chunks(40))
    next(results)
    results.close()
    assert pools[0].end == {"wait": True, "cancel_futures": True}


def test_a_worker_that_was_never_started_is_a_bug_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_worker", None)
    with pytest.raises(RuntimeError, match="did not start"):
        pool._run(Chunk("talks", "file", []))
