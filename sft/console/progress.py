"""Progress output: a bar on a terminal, a plain line every few seconds in a batch log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, str], None]
"""Takes the number of units done since the last call and a short remark."""

PLAIN_INTERVAL_S = 10.0


@contextmanager
def progress(
    title: str,
    total: int | None,
    *,
    unit: str,
    start: int = 0,
    clock: Callable[[], float] = time.monotonic,
    shown: bool = True,
) -> Iterator[Advance]:
    """Show the progress of a task; with `total=None` only the count is shown."""
    if not shown:
        yield lambda _count, _remark: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(title, total, unit, start, clock)
        return
    columns = [
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn() if total else TextColumn(""),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[remark]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    ]
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(title, total=total, completed=start, remark="")
        yield lambda count, remark: bar.update(task, advance=count, remark=remark)


def _plain(title: str, total: int | None, unit: str, start: int, clock: Callable[[], float]) -> Advance:
    done, started_s, shown_s = start, clock(), clock()

    def advance(count: int, remark: str) -> None:
        nonlocal done, shown_s
        done += count
        if clock() - shown_s >= PLAIN_INTERVAL_S or done == total:
            shown_s = clock()
            share = f"{done}/{total}" if total else f"{done}"
            left = _time_left(total - done, (clock() - started_s) / max(1, done - start)) if total else ""
            print(f"{title}: {share} {unit} {remark}{left}".rstrip(), file=sys.stderr, flush=True)

    return advance


def _time_left(num_left: int, each_s: float) -> str:
    return f" · {duration(num_left * each_s)} left" if num_left else ""


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}"
