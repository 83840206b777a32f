"""Whole runs of several processes: the same result as of one, also if their number changes on the way."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config.train import TrainConfig
from sft.data.batches.sampler import Order
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import published
from sft.train.engine.native import TorchEngine
from sft.train.loop import train
from sft.train.monitor.records import read_records
from tests.support.ranks import Ended, finished, fork_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

MakeConfig = Callable[..., TrainConfig]


def train_on(size: int, config: TrainConfig) -> list[Ended]:
    return fork_ranks(size, lambda world, place: train(config, world=world, environ={}, meeting_place=place))


def losses(config: TrainConfig) -> list[float]:
    records = read_records(Path(config.out) / "metrics.jsonl")
    return [record["loss"] for record in records if record["kind"] == "step" and not record.get("superseded")]


def evaluations(config: TrainConfig) -> list[Any]:
    records = read_records(Path(config.out) / "metrics.jsonl")
    return [record["sources"] for record in records if record["kind"] == "eval"]


def ledger(config: TrainConfig) -> list[Any]:
    return [json.loads(line) for line in (Path(config.out) / "ledger.jsonl").read_text().splitlines()]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, rank: int) -> None:
    """Let one process get SIGTERM in the middle of a step."""
    original, calls = TorchEngine.step, 0

    def stepping(engine: TorchEngine, lr: float) -> Any:
        nonlocal calls
        calls += 1
        if calls == step and (engine._mesh is None or engine._mesh.get_local_rank("shards") == rank):
            signal.raise_signal(signal.SIGTERM)
        return original(engine, lr)

    monkeypatch.setattr(TorchEngine, "step", stepping)


def test_a_run_of_several_processes_is_the_run_of_one(tiny_config: MakeConfig, tmp_path: Path) -> None:
    alone, together = (
        tiny_config(evaluation__every_steps=6),
        tiny_config(evaluation__every_steps=6, out=str(tmp_path / "together")),
    )
    train(alone)
    finished(train_on(3, together))
    assert losses(together) == pytest.approx(losses(alone), rel=1e-6)
    evals = [
        [r["sources"] for r in read_records(Path(c.out) / "metrics.jsonl") if r["kind"] == "eval"]
        for c in (alone, together)
    ]
    for ours, theirs in zip(*evals, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[name]["loss"] == pytest.approx(theirs[name]["loss"], rel=1e-5) for name in ours)
        assert all(ours[name]["tokens"] == theirs[name]["tokens"] for name in ours)


def test_a_run_changes_its_number_of_processes_twice_and_uses_every_pack_once_per_epoch(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, elastic = tiny_config(), tiny_config(out=str(tmp_path / "elastic"), checkpoint__every_steps=100)
    train(alone)
    for size, step in ((1, 4), (4, 5)):
        with monkeypatch.context() as asking:
            stop_at(asking, step, rank=size - 1)
            ended = train_on(size, elastic)
        assert [rank.exit_code for rank in ended] == [75] * size
    assert [int(path.name[5:]) for path in published(Path(elastic.out) / "checkpoints")] == [9, 4]
    finished(train_on(2, elastic))
    assert losses(elastic) == pytest.approx(losses(alone), rel=1e-6)
    order = Order(24, 4, 2.0, 0)
    assert [entry["step"] for entry in ledger(elastic)] == list(range(1, 13))
    assert [sorted(entry["packs"]) for entry in ledger(elastic)] == [sorted(order.batch(step)) for step in range(12)]
    assert State.read(published(Path(elastic.out) / "checkpoints")[0]).position == 48


@pytest.mark.parametrize("async_save", [True, False])
def test_a_stopped_run_of_two_ends_with_the_same_bits(
    async_save: bool, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = tiny_config(checkpoint__async_save=async_save)
    stopped = tiny_config(checkpoint__async_save=async_save, out=str(tmp_path / "stopped"))
    finished(train_on(2, straight))
    with monkeypatch.context() as asking:
        stop_at(asking, 6, rank=0)
        assert [rank.exit_code for rank in train_on(2, stopped)] == [75, 75]
    finished(train_on(2, stopped))
    assert losses(stopped) == losses(straight)
    for name in ("weights-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"):
        files = [published(Path(config.out) / "checkpoints")[0] / name for config in (straight, stopped)]
        assert files[0].read_bytes() == files[1].read_bytes()
