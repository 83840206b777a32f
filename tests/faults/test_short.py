"""Every kind of fault at least once; what the kinds are and what must come of them stands in cases.py."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.case import Case
from tests.faults.cases import CASES
from tests.faults.mutations import MUTATIONS
from tests.faults.oracle import BARRED
from tests.faults.runner import jobs_of

Inject = Callable[[str, int], dict[str, Any]]


@pytest.fixture(scope="session")
def inject() -> Iterator[Inject]:
    """Makes an injection in a fork of a process that has everything imported, and has no thread but one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.runner", "--serve"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(case_id: str, n: int) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{case_id} {n}\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    yield ask
    process.communicate()


def of_short_run() -> Iterator[Any]:
    """Every injection of the short run."""
    for case, n in jobs_of([], is_long=False):
        yield pytest.param(case, n, id=f"{case.id}-{n}")


@pytest.mark.parametrize(("case", "n"), list(of_short_run()))
def test_a_fault_ends_as_promised(case: Case, n: int, inject: Inject) -> None:
    result = inject(case.id, n)
    if result["outcome"] == BARRED:
        pytest.skip(result["detail"])
    assert result["outcome"] in case.expect, result["detail"]


def test_a_kind_that_is_tested_elsewhere_is_tested_there() -> None:
    root = Path(__file__).parents[2]
    files = {file for case in CASES.values() for file in case.files}
    assert len(files) > 20
    assert sorted(file for file in files if not (root / file).is_file()) == []


def test_a_kind_is_injected_or_says_why_not() -> None:
    assert [case.id for case in CASES.values() if bool(case.inject) != bool(case.short and case.long)] == []
    assert [case.id for case in CASES.values() if not case.inject and not case.reason] == []


def test_every_planted_bug_still_finds_its_place() -> None:
    pid = os.fork()  # what is planted stays planted
    if pid == 0:
        try:
            for mutation in MUTATIONS:
                mutation.apply()
        except BaseException:  # noqa: BLE001  the fork must never go on as a second pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
