"""Whole runs on DeepSpeed: the same result as with PyTorch alone, also if the engine changes on the way."""

import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sft.config.train import TrainConfig
from sft.train.engine.deepspeed.engine import DeepSpeedEngine
from sft.train.loop import train
from sft.train.monitor.records import read_records
from tests.support.deepspeed import preload, zero
from tests.support.ranks import finished, fork_ranks

if find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed (extra `deepspeed`)", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

MakeConfig = Callable[..., TrainConfig]


def losses(config: TrainConfig, kind: str) -> list[float]:
    records = read_records(Path(config.out) / "metrics.jsonl")
    current = [record for record in records if record["kind"] == kind and not record.get("superseded")]
    return [record["loss"] if kind == "step" else record["sources"]["all"]["loss"] for record in current]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = DeepSpeedEngine.step

    def stepping(engine: DeepSpeedEngine, lr: float) -> Any:
        if engine.state()["num_updates"] == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return original(engine, lr)

    monkeypatch.setattr(DeepSpeedEngine, "step", stepping)


def test_a_run_goes_from_zero_to_fsdp_to_another_stage_and_is_the_run_of_one_process(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preload()
    alone = tiny_config(evaluation__every_steps=6)
    changing = tiny_config(evaluation__every_steps=6, out=str(tmp_path / "changing"), checkpoint__every_steps=100)
    train(alone)
    with monkeypatch.context() as asking:
        stop_at(asking, 4)
        assert [rank.exit_code for rank in train_on(3, zero(changing, 3))] == [75, 75, 75]
        stop_at(asking, 7)
        assert [rank.exit_code for rank in train_on(2, zero(changing, 2, offload=True))] == [75, 75]
    finished(train_on(2, changing))
    for kind in ("step", "eval"):
        assert losses(changing, kind) == pytest.approx(losses(alone, kind), rel=1e-6)


def train_on(size: int, config: TrainConfig) -> Any:
    return fork_ranks(size, lambda world, place: train(config, world=world, environ={}, meeting_place=place))
