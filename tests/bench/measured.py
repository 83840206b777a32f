"""Work in a process of its own on cores of its own: the time it takes and the memory of all its processes.

Linux only: memory comes from /proc.
"""

import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SAMPLE_INTERVAL_S = 0.2
_MIB = 1 << 20

Job = tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]
"""What is timed, and what then describes its result."""
Prepare = Callable[[], Job]
"""Imports, reads and lays out what is not timed. It is sent to the new process, so it is a `partial` of a function."""


@dataclass
class Peak:
    """The largest sums over all processes of a tree, each at its own moment, in MiB."""

    rss: float = 0.0
    """Resident pages, those of files included; pages that are shared count in every process."""
    pss: float = 0.0
    """Resident pages, those that are shared divided among their processes."""
    anonymous: float = 0.0
    """Resident pages that belong to no file: what the system cannot take back."""


@dataclass
class _Watch:
    """Looks at the processes below a process until it is told to stop."""

    pid: int
    peak: Peak = field(default_factory=Peak)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(SAMPLE_INTERVAL_S):
            found = [_memory(pid) for pid in _tree(self.pid)]
            for name, key in (("rss", "Rss"), ("pss", "Pss"), ("anonymous", "Anonymous")):
                total = sum(memory.get(key, 0) for memory in found) / _MIB
                setattr(self.peak, name, max(getattr(self.peak, name), total))

    def stop(self) -> None:
        self._stop.set()


def measured(prepare: Prepare, cores: set[int]) -> dict[str, Any]:
    """Run a job in a new interpreter on these cores, and describe it.

    `seconds` and `cpu_s` are those of the job alone, its child processes included; `with_start_s` is from starting the
    interpreter to its end.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(prepare, cores, there))
    start = time.perf_counter()
    process.start()
    there.close()
    watch = _Watch(process.pid or 0)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        result: dict[str, Any] = here.recv()
        process.join()
        result["with_start_s"] = time.perf_counter() - start
    finally:
        watch.stop()
        thread.join()
    result["peak_mib"] = {name: round(value, 1) for name, value in vars(watch.peak).items()}
    return result


def choose_cores() -> list[int]:
    """The cores to measure on, the best first; this process moves to the last one."""
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    os.sched_setaffinity(0, cores[-1:])
    return cores


def _run(prepare: Prepare, cores: set[int], to: Connection) -> None:
    os.sched_setaffinity(0, cores)
    run, describe = prepare()
    start, cpu_start = time.perf_counter(), _cpu_s()
    outcome = run()
    seconds, cpu_s = time.perf_counter() - start, _cpu_s() - cpu_start
    to.send({"seconds": seconds, "cpu_s": cpu_s, **_largest(), **describe(outcome)})


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _largest() -> dict[str, float]:
    """The kernel's own record of the largest process, which misses no moment."""
    used = {"main": resource.RUSAGE_SELF, "largest_child": resource.RUSAGE_CHILDREN}
    return {f"{name}_max_rss_mib": round(resource.getrusage(who).ru_maxrss / 1024, 1) for name, who in used.items()}


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return
    for child in " ".join(children).split():
        yield from _tree(int(child))


def _memory(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}  # it has just ended
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
