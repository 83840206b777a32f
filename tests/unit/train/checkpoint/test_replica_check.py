"""Copies of the same weights are compared before they are saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.config.engine import DeepSpeedConfig
from sft.config.train import TrainConfig
from sft.errors import PeerError
from sft.train.checkpoint.replica_check import checksum
from sft.train.engine.native import TorchEngine
from sft.train.loop import train
from tests.support.ranks import finished, fork_ranks

MakeConfig = Callable[..., TrainConfig]

pytestmark = pytest.mark.usefixtures("one_thread")


def drifts(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """From the third step on, one weight of one process is not what it should be."""
    original, calls = TorchEngine.step, 0

    def step(engine: TorchEngine, lr: float) -> Any:
        nonlocal calls
        calls += 1
        result = original(engine, lr)
        if calls == 3 and torch.distributed.get_rank() == rank:
            with torch.no_grad():
                next(engine.model.parameters()).to_local().view(-1)[0] += 1e-3  # type: ignore[attr-defined]
        return result

    monkeypatch.setattr(TorchEngine, "step", step)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_copy_that_has_drifted_apart_is_named_and_not_saved(
    rank: int, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(fsdp__shard_size=1, health__numerics_gate=False)
    drifts(monkeypatch, rank)
    ended = fork_ranks(2, lambda world, place: train(config, world=world, environ={}, meeting_place=place))
    assert [each.exit_code for each in ended] == [PeerError.exit_code] * 2
    assert all("processes 1 hold other weights" in each.text for each in ended)
    assert not list((Path(config.out) / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("stage", [None, 0, 2, 3])
def test_copies_that_are_equal_and_shares_that_differ_are_saved(stage: int | None, tiny_config: MakeConfig) -> None:
    changes: dict[str, Any] = {}
    if stage is not None:
        pytest.importorskip("deepspeed")
        changes = {"engine": "deepspeed", "deepspeed": DeepSpeedConfig(zero_stage=stage)}
    config = tiny_config(max_steps=2, health__numerics_gate=False, **changes)
    finished(fork_ranks(2, lambda world, place: train(config, world=world, environ={}, meeting_place=place)))
    assert [path.name for path in (Path(config.out) / "checkpoints").iterdir()] == ["step-00000002"]


def test_every_bit_counts() -> None:
    weights = [torch.zeros(5), torch.ones(2, 3)]
    before = checksum(weights)
    weights[1].view(torch.int32)[1, 2] ^= 1
    assert checksum(weights) != before
