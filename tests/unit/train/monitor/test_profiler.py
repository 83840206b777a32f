"""A few steps are recorded in detail if asked for, and the run is otherwise the same."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sft.config.train import TrainConfig
from sft.errors import StopRequested
from sft.train.loop import train
from sft.train.monitor.profiler import StepProfiler
from sft.train.monitor.records import read_records

MakeConfig = Callable[..., TrainConfig]


def steps_recorded(run: Path, rank: int = 0) -> list[str]:
    trace = json.loads(gzip.decompress((run / f"profile/rank-{rank:05d}.json.gz").read_bytes()))
    return [event["name"] for event in trace["traceEvents"] if event.get("name", "").startswith("step ")]


def take(profiler: StepProfiler, *steps: int) -> None:
    for step in steps:
        with profiler.step(step):
            pass
    profiler.close()


def test_the_steps_asked_for_are_in_trace_and_table(tiny_config: MakeConfig, tmp_path: Path) -> None:
    plain = tiny_config(max_steps=4)
    config = tiny_config(max_steps=4, profiler__start_step=2, profiler__steps=2, out=str(tmp_path / "profiled"))
    train(plain)
    train(config)
    assert steps_recorded(Path(config.out)) == ["step 2", "step 3"]
    table = (Path(config.out) / "profile/rank-00000.txt").read_text()
    assert "step 2" in table
    assert "aten::mm" in table
    losses = [[r["loss"] for r in read_records(Path(c.out) / "metrics.jsonl") if "loss" in r] for c in (plain, config)]
    assert losses[0] == losses[1]
    assert not (Path(plain.out) / "profile").exists()


@pytest.mark.parametrize(
    ("taken", "recorded"),
    [
        ([1, 2, 3, 4, 5], ["step 2", "step 3", "step 4"]),
        ([3, 4, 5], ["step 3", "step 4"]),  # resumed in the midst of them
        ([1, 2, 3], ["step 2", "step 3"]),  # the run ended before the last
    ],
)
def test_what_is_there_of_them_is_recorded(taken: list[int], recorded: list[str], tmp_path: Path) -> None:
    take(StepProfiler(tmp_path, 3, first=2, num_steps=3), *taken)
    assert steps_recorded(tmp_path, rank=3) == recorded


def test_nothing_is_written_if_none_of_them_is_taken(tmp_path: Path) -> None:
    take(StepProfiler(tmp_path, 0, first=2, num_steps=3), 5, 6)
    take(StepProfiler(tmp_path, 0, first=2, num_steps=0), 1, 2, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_ends_the_run_is_recorded_and_its_error_seen(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 0, first=1, num_steps=3)
    with pytest.raises(StopRequested), profiler.step(1):
        raise StopRequested("now")
    profiler.close()
    assert steps_recorded(tmp_path) == ["step 1"]


def test_a_disk_that_refuses_costs_the_profile_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("in the way")
    take(StepProfiler(tmp_path, 0, first=1, num_steps=1), 1)
    assert "the profile cannot be written" in caplog.text
