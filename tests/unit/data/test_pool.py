"""Results come in the order of the chunks, and only a few chunks are in memory at once."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

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


def test_a_worker_that_was_never_started_is_a_bug_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_worker", None)
    with pytest.raises(RuntimeError, match="did not start"):
        pool._run(Chunk("talks", "file", []))
