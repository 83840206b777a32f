"""Runs injections, each in a fork of one warmed-up process.

python -m tests.faults.runner                 the short run
python -m tests.faults.runner --long          the long run
python -m tests.faults.runner A B3            only these families or kinds
python -m tests.faults.runner --serve         reads `KIND NUMBER` lines, answers each with a JSON line
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from tests.faults.case import Case
from tests.faults.cases import CASES
from tests.faults.fixtures import Material
from tests.faults.oracle import BROKEN, SLOW, WRONG, Failure
from tests.faults.report import Result, summary, write
from tests.faults.sandbox import Bench

LIMIT_S = 180.0
ROOM_BYTES = 2_000_000_000


Job = tuple[Case, int]


def run_all(jobs: Iterable[Job], material: Material, num_processes: int) -> Iterator[Result]:
    """Run the injections in a pool of forks; results come as they end."""
    waiting = list(jobs)[::-1]
    for name in {name for case, _ in waiting for name in case.needs}:
        getattr(material, name)
    running: dict[int, tuple[Case, int, float, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                case, n = waiting.pop()
                pid, pipe = _fork(case, n, material)
                running[pid] = (case, n, time.monotonic(), pipe)
            for pid, (case, n, started_s, pipe) in list(running.items()):
                is_over = os.waitpid(pid, os.WNOHANG)[0] == pid
                seconds = time.monotonic() - started_s
                if not is_over and seconds < LIMIT_S:
                    continue
                _kill_group(pid, is_over)
                del running[pid]
                yield _result(case, n, pipe, seconds, is_over)
            time.sleep(0.002)
    finally:  # also when nobody asks for the rest
        for pid in running:
            _kill_group(pid, False)


def _fork(case: Case, n: int, material: Material) -> tuple[int, int]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.close(reading)
            outcome, detail = judge(case, n, material)
            os.write(writing, json.dumps([outcome, detail[-4000:]]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    return pid, reading


def judge(case: Case, n: int, material: Material) -> tuple[str, str]:
    """Inject, and say how it ended and why."""
    folder = Path(tempfile.mkdtemp(prefix=f"{case.id}-{n}-", dir=material.folder))
    try:
        if case.inject is None:
            return BROKEN, "not tried here"
        ending = case.inject(Bench(case.id, n, folder, material))
        return (ending, "") if ending in case.expect else (WRONG, f"ended with {ending}, expected {case.expect}")
    except Failure as failure:
        return failure.outcome, str(failure)
    except Exception:  # noqa: BLE001  a mistake in the case is a result too
        return BROKEN, traceback.format_exc()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kill_group(pid: int, is_over: bool) -> None:
    with suppress(ProcessLookupError):  # victims that a case left behind
        os.killpg(pid, signal.SIGKILL)
    if not is_over:
        os.waitpid(pid, 0)


def _result(case: Case, n: int, pipe: int, seconds: float, is_over: bool) -> Result:
    with os.fdopen(pipe, "rb") as stream:
        said = stream.read() if is_over else b""
    outcome, detail = json.loads(said) if said else (BROKEN if is_over else SLOW, "the case itself died or hung")
    return Result(case.id, n, outcome, detail, round(seconds, 2))


def jobs_of(names: Iterable[str], *, is_long: bool) -> list[Job]:
    """The injections of these kinds or families, all of them without a name."""
    wanted = list(names)
    cases = [case for case in CASES.values() if not wanted or {case.id, case.family} & set(wanted)]
    return [(case, n) for case in cases if case.inject for n in range(case.long if is_long else case.short)]


@contextmanager
def warmed_up() -> Iterator[Material]:
    """The material, in memory if the machine has a file system there: nothing here outlives a power cut anyway."""
    memory = Path("/dev/shm")
    has_room = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM_BYTES
    parent = memory if has_room else None
    with tempfile.TemporaryDirectory(prefix="faults-", dir=parent, ignore_cleanup_errors=True) as folder:
        material = Material(Path(folder))
        material.straight("fp32")
        yield material


def serve(material: Material) -> None:
    """Answer `KIND NUMBER` lines."""
    for line in sys.stdin:
        case_id, n = line.split()
        (result,) = run_all([(CASES[case_id], int(n))], material, 1)
        print(json.dumps(asdict(result)), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="kinds or families")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--only", type=int, metavar="N", help="only the N-th injection of each kind")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write the table there")
    options = parser.parse_args()
    started_s = time.monotonic()
    with warmed_up() as material:
        if options.serve:
            serve(material)
            return 0
        jobs = jobs_of(options.names, is_long=options.long)
        if options.only is not None:
            jobs = [(case, options.only) for case in {job[0].id: job[0] for job in jobs}.values()]
        results = list(_told(run_all(jobs, material, options.processes)))
    print(summary(results))
    if options.report:
        write(options.report, results, time.monotonic() - started_s)
    return int(any(result.is_bad for result in results))


def _told(results: Iterable[Result]) -> Iterator[Result]:
    for number, result in enumerate(results, 1):
        if result.is_bad:
            print(f"{result.id} {result.n}: {result.outcome}: {result.detail}", flush=True)
        elif number % 100 == 0:
            print(f"{number} injections so far", flush=True)
        yield result


if __name__ == "__main__":
    sys.exit(main())
