"""Finished chunks come in order, only the rows of a few are in memory at once, and none is made twice."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.config.data import BuildConfig
from sft.data.build import pool
from sft.data.build.chunk import DOCUMENT_FIELDS, Chunk, ChunkFile, ChunkResult, write_chunk
from sft.data.dedup.minhash import NUM_BANDS
from sft.errors import StorageError


def result(chunk: Chunk, checked_share: float = 1.0) -> ChunkResult:
    """A result without documents."""
    empty = np.zeros(0, np.uint16)
    bands = np.zeros((0, NUM_BANDS), np.uint64)
    return ChunkResult(
        chunk.source,
        chunk.file,
        0,
        0,
        0,
        checked_share,
        {},
        [],
        np.zeros(0, DOCUMENT_FIELDS),
        empty,
        empty.astype(np.uint8),
        empty,
        bands,
    )


def chunks(count: int) -> Iterator[Chunk]:
    for number in range(count):
        yield Chunk("talks", f"file {number}", [], f"chunk-{number}")


def files(finished: Iterator[ChunkFile]) -> list[str]:
    return [chunk.file for chunk in finished]


class LazyExecutor:
    """Runs each job only when its result is asked for, and counts those that wait."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.waiting = self.most_waiting = 0

    def submit(self, function: Any, chunk: Chunk, path: Path) -> Future[None]:
        self.submitted.append(chunk.file)
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        executor = self

        class Lazy(Future):  # type: ignore[type-arg]
            def result(self, _: float | None = None) -> None:
                executor.waiting -= 1
                function(chunk, path)

        return Lazy()


@pytest.fixture
def config() -> BuildConfig:
    return BuildConfig({}, "raw", "tokenizer.json", "shards")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are written without a worker."""
    monkeypatch.setattr(pool, "_run", lambda chunk, path: write_chunk(path, result(chunk)))


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("count", [0, 1, 5, 6, 50])
def test_finished_units_keep_the_order_and_rows_are_bounded(count: int, tmp_path: Path) -> None:
    executor = LazyExecutor()
    finished = pool._in_order(executor, ChunkFile.open, tmp_path, chunks(count), ahead=4)  # type: ignore[arg-type]
    assert files(finished) == [f"file {number}" for number in range(count)]
    assert executor.most_waiting <= 5


@pytest.mark.usefixtures("no_work")
def test_no_unit_is_read_before_a_finished_one_is_asked_for(tmp_path: Path) -> None:
    source = chunks(50)
    finished = pool._in_order(LazyExecutor(), ChunkFile.open, tmp_path, source, ahead=4)  # type: ignore[arg-type]
    assert next(finished).file == "file 0"
    assert next(source).file == "file 5"


@pytest.mark.usefixtures("no_work")
def test_a_unit_that_is_finished_is_not_made_again(tmp_path: Path) -> None:
    for chunk in chunks(6):
        if chunk.name != "chunk-3":
            write_chunk(tmp_path / chunk.name, result(chunk))
    damaged = tmp_path / "chunk-5"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    executor = LazyExecutor()
    finished = pool._in_order(executor, ChunkFile.open, tmp_path, chunks(6), ahead=4)  # type: ignore[arg-type]
    assert files(finished) == [f"file {number}" for number in range(6)]
    assert executor.submitted == ["file 3", "file 5"]


@pytest.mark.parametrize(
    ("backend", "share", "made_again"),
    [
        ("tokenizers", 0.0, 3),
        ("fastokens", 1.0, 3),
        ("fastokens", 0.5, 2),
        ("fastokens", 0.2, 1),
        ("fastokens", 0.0, 0),
    ],
)
def test_a_unit_of_which_less_was_compared_than_is_asked_for_is_made_again(
    backend: Any,
    share: float,
    made_again: int,
    pools: list["CountingPool"],
    config: BuildConfig,
    tmp_path: Path,
) -> None:
    for chunk, checked in zip(chunks(4), (0.0, 0.2, 0.5, 1.0), strict=True):
        write_chunk(tmp_path / chunk.name, result(chunk, checked))
    wanted = replace(config, workers=2, tokenizer_backend=backend, tokenizer_check_share=share)
    assert files(pool.run_chunks(wanted, Path("recipes"), tmp_path, chunks(4))) == [f"file {n}" for n in range(4)]
    assert pools[0].submitted == [f"file {n}" for n in range(made_again)]


def test_what_the_disk_garbled_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pool, "_run", lambda _, path: path.write_bytes(b"garbled"))
    finished = pool._in_order(LazyExecutor(), ChunkFile.open, tmp_path, chunks(3), ahead=4)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="chunk-0: differs from what was written"):
        next(finished)


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
    monkeypatch.setattr(pool, "_run", lambda chunk, path: write_chunk(path, result(chunk)))
    return made


@pytest.mark.parametrize(("workers", "cores", "started"), [(3, 8, 3), (0, 5, 5), (2, 1, 2)])
def test_as_many_processes_start_as_were_asked_for(
    workers: int,
    cores: int,
    started: int,
    pools: list[CountingPool],
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    finished = pool.run_chunks(replace(config, workers=workers), Path("recipes"), tmp_path, chunks(40))
    assert files(finished) == [f"file {number}" for number in range(40)]
    (only,) = pools
    assert only.num_workers == started
    assert started < only.most_waiting <= 2 * started + 1
    assert only.end == {"wait": True, "cancel_futures": True}


def test_where_the_system_does_not_tell_the_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pool.os, "sched_getaffinity", raising=False)
    for counted, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(pool.os, "cpu_count", lambda counted=counted: counted)
        assert pool.num_cores() == expected


@pytest.mark.parametrize(("workers", "cores"), [(1, 8), (0, 1)])
def test_one_worker_is_this_process(
    workers: int,
    cores: int,
    pools: list[CountingPool],
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run: list[str] = []

    class Here:
        def __init__(self, *_: Any) -> None: ...

        def run(self, chunk: Chunk) -> ChunkResult:
            run.append(chunk.file)
            return result(chunk)

    monkeypatch.setattr(pool, "Worker", Here)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    finished = pool.run_chunks(replace(config, workers=workers), Path("recipes"), tmp_path, chunks(3))
    assert files(finished) == ["file 0", "file 1", "file 2"]
    assert pools == []
    (tmp_path / "chunk-1").unlink()
    run.clear()
    again = pool.run_chunks(replace(config, workers=workers), Path("recipes"), tmp_path, chunks(3))
    assert files(again) == ["file 0", "file 1", "file 2"]
    assert run == ["file 1"]


def test_a_reader_that_stops_early_stops_the_processes(
    pools: list[CountingPool], config: BuildConfig, tmp_path: Path
) -> None:
    finished = pool.run_chunks(replace(config, workers=2), Path("recipes"), tmp_path, chunks(40))
    next(finished)
    finished.close()
    assert pools[0].end == {"wait": True, "cancel_futures": True}


def test_a_worker_that_was_never_started_is_a_bug_not_a_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pool, "_load", None)
    with pytest.raises(RuntimeError, match="did not start"):
        pool._run(Chunk("talks", "file", [], "chunk-0"), tmp_path / "chunk-0")
