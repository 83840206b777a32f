"""Numbers that are not finite in one process of several: all skip together, and all end together."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config.train import TrainConfig
from sft.data.batches.sampler import Order
from sft.train.engine.native import TorchEngine
from sft.train.loop import train
from sft.train.monitor.records import Record, read_records
from tests.support.ranks import Ended, finished, fork_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

MakeConfig = Callable[..., TrainConfig]


def train_with_nan(size: int, config: TrainConfig, rank: int, steps: set[int], monkeypatch: Any) -> list[Ended]:
    """Train in several processes; one of them finds NaN in its share of the gradient in these steps."""
    original, number = TorchEngine.step, 0

    def work(world: Any, place: str) -> None:
        def step(engine: TorchEngine, lr: float) -> Any:
            nonlocal number
            number += 1
            if world.rank == rank and number in steps:
                for parameter in engine.model.parameters():
                    if parameter.grad is not None:
                        local = getattr(parameter.grad, "to_local", lambda grad=parameter.grad: grad)()
                        local.fill_(math.nan)
            return original(engine, lr)

        monkeypatch.setattr(TorchEngine, "step", step)
        train(config, world=world, environ={}, meeting_place=place)

    return fork_ranks(size, work)


def steps_of(config: TrainConfig) -> list[Record]:
    return [record for record in read_records(Path(config.out) / "metrics.jsonl") if record["kind"] == "step"]


def test_nan_in_one_process_makes_all_skip_the_step(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    finished(train_with_nan(3, config, 1, {5}, monkeypatch))
    assert [record["step"] for record in steps_of(config) if record["skipped"]] == [5]
    assert steps_of(config)[4]["reason"] == "gradient norm is nan"
    assert all(math.isfinite(record["loss"]) for record in steps_of(config))
    (file,) = (Path(config.out) / "bad_steps").iterdir()
    told = json.loads(file.read_text())
    assert list(dict.fromkeys(row["pack"] for row in told["documents"])) == Order(24, 4, 2.0, 0).batch(4)


def test_nan_in_one_process_again_and_again_ends_all_with_the_rows_written_once(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    ended = train_with_nan(2, config, 1, {6, 7, 8}, monkeypatch)
    assert [rank.exit_code for rank in ended] == [70, 70]
    assert all("not finite in 3 steps in a row" in rank.text for rank in ended)
    assert sorted(path.name for path in (Path(config.out) / "bad_steps").iterdir()) == [
        f"step-{step:08d}.json" for step in (6, 7, 8)
    ]
