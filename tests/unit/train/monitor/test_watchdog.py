"""What a watchdog writes and when, by a clock that the tests turn. See integration/test_hang.py for real hangs."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft.train.distributed.world import World
from sft.train.monitor.hang_limit import STEP
from sft.train.monitor.watchdog import Watchdog
from sft.train.run_layout import RunLayout
from tests.conftest import MakeConfig

RANK = 3


class Bench:
    """A watchdog of rank 3 of 5 under a clock that is turned by hand, and what it did."""

    def __init__(self, folder: Path, make_config: MakeConfig) -> None:
        self.now_s, self.codes, self.path = 1000.0, list[int](), RunLayout(folder).stacks(RANK)
        config = make_config(hang__timeout_s=120.0, hang__first_step_timeout_s=1800.0)
        self.dog = Watchdog(folder, World(RANK, 5), config.hang, clock=lambda: self.now_s, leave=self.codes.append)

    def after(self, seconds: float) -> None:
        self.now_s += seconds
        self.dog.look()

    @property
    def stacks(self) -> str:
        return self.path.read_text()


@pytest.fixture
def bench(tmp_path: Path, tiny_config: MakeConfig) -> Iterator[Bench]:
    bench = Bench(tmp_path, tiny_config)
    with bench.dog:
        bench.dog.beat(STEP, 1)
        bench.dog.beat(STEP, 2)  # the first step is done, so that the short limit holds
        yield bench


def test_stacks_are_written_at_the_limit_and_say_who_and_where(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.after(119.9)
    assert bench.stacks == ""
    bench.after(0.2)
    bench.after(1.0)
    assert bench.stacks.count("no progress") == 1
    assert f"rank 3 of 5 on {os.uname().nodename}" in bench.stacks
    assert "no progress for 120 s in step 2 (step)" in bench.stacks
    assert "in test_stacks_are_written_at_the_limit_and_say_who_and_where" in bench.stacks
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("sft: rank 3 of 5")
    assert f"its stacks are in {bench.path}; it leaves in 120 s" in said[0]


def test_process_leaves_at_twice_the_limit_and_names_the_ranks_without_stacks(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.after(121.0)
    for rank in (0, 4):
        RunLayout(bench.path.parents[1]).stacks(rank).write_text("stacks\n")
    bench.after(118.0)
    assert bench.codes == []
    bench.after(1.5)
    bench.after(5.0)
    assert bench.codes == [71]
    last = capfd.readouterr().err.splitlines()[-1]
    assert "no stacks from rank 1, 2: look there first" in last
    assert "leaving with code 71" in last


def test_stacks_of_an_earlier_attempt_are_kept_and_are_no_sign_of_life(
    tmp_path: Path, tiny_config: MakeConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    for rank in range(5):
        path = RunLayout(tmp_path).stacks(rank)
        path.parent.mkdir(exist_ok=True)
        path.write_text("before\n")
    bench = Bench(tmp_path, tiny_config)
    with bench.dog:
        bench.after(3600.0)
    assert bench.stacks.startswith("before\n")
    assert "no stacks from rank 0, 1, 2, 4" in capfd.readouterr().err


def test_process_that_goes_on_after_the_warning_stays_and_is_warned_again_later(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.after(200.0)
    with caplog.at_level(logging.WARNING):
        bench.dog.beat(STEP, 2)
    assert "continued after 200 s" in caplog.text
    bench.after(119.0)
    assert bench.codes == []
    bench.after(2.0)
    assert bench.stacks.count("no progress") == 2


def test_saving_may_take_longer_than_a_step(bench: Bench) -> None:
    bench.dog.beat("save", 2)
    bench.after(1799.0)
    assert bench.stacks == ""
    bench.after(2.0)
    assert "in step 2 (save)" in bench.stacks


def test_healthy_run_leaves_no_stacks_and_is_no_longer_watched(tmp_path: Path, tiny_config: MakeConfig) -> None:
    bench = Bench(tmp_path, tiny_config)
    with bench.dog:
        bench.after(100.0)
    assert not bench.path.exists()
    bench.after(1e9)
    assert bench.codes == []


def test_watchdog_that_is_switched_off_never_leaves(tmp_path: Path, tiny_config: MakeConfig) -> None:
    codes: list[int] = []
    config = tiny_config(hang__timeout_s=0.0, hang__first_step_timeout_s=0.0)
    now_s = 0.0
    with Watchdog(tmp_path, World(), config.hang, clock=lambda: now_s, leave=codes.append) as dog:
        now_s = 1e9
        dog.look()
        dog.beat(STEP, 1)
    assert codes == []
    assert list((tmp_path / "stacks").iterdir()) == []
