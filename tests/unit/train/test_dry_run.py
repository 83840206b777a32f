"""A dry run tells what a run will need, and leaves nothing behind."""

import io
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.config.train import TrainConfig
from sft.data.batches.batch import Batch
from sft.data.shards import Shards
from sft.errors import ConfigError, NumericsError, PeerError
from sft.train.distributed.world import World
from sft.train.dry_run import dry_run
from sft.train.engine.native import TorchEngine
from tests.support.ranks import finished, fork_ranks

MakeConfig = Callable[..., TrainConfig]


def test_it_says_what_the_run_will_need_and_writes_nothing(
    tiny_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    dry_run(config)
    text = capsys.readouterr().out
    for pattern in (
        r"loss 4\.\d+, [\d,]+ tokens/s, update \d",
        r"memory: \d+\.\d+ GB\n",
        r"time: 12 steps, about 0:00:\d\d",
        r"disk: 0\.\d\d GB per checkpoint, up to 4 at once, [\d.]+ GB free\n",
        r"nothing was written",
    ):
        assert re.search(pattern, text), text
    assert not Path(config.out).exists()


def test_it_takes_the_packs_that_cost_most(
    tiny_config: MakeConfig, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []
    original = TorchEngine.forward_backward

    def watched(engine: TorchEngine, batch: Batch, *arguments: Any, **options: Any) -> None:
        seen.append(batch)
        original(engine, batch, *arguments, **options)

    monkeypatch.setattr(TorchEngine, "forward_backward", watched)
    dry_run(tiny_config(micro_batch_packs=2))
    split = Shards.open(tiny_shards).split("train")
    costs = [sum(int(length) ** 2 for length in split[pack].doc_lengths_N) for pack in range(len(split))]
    largest = sorted(range(len(split)), key=lambda pack: -costs[pack])[:2]
    assert [sorted(batch.packs) for batch in seen] == [sorted(largest)] * 2


def test_several_processes_try_together(tiny_config: MakeConfig) -> None:
    config = tiny_config()

    def printed(world: World, place: str) -> str:
        with redirect_stdout(io.StringIO()) as said:
            dry_run(config, world=world, environ={}, meeting_place=place)
        return said.getvalue()

    first, second = finished(fork_ranks(2, printed))
    assert re.search(r"one step on the largest packs: loss \d+\.\d+, ", first)
    assert second == ""
    assert not Path(config.out).exists()


def test_a_run_that_does_not_fit_is_told_what_to_change(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GB")

    monkeypatch.setattr(TorchEngine, "forward_backward", too_large)
    with pytest.raises(PeerError, match=r"out of memory(.|\n)*lower micro_batch_packs"):
        dry_run(tiny_config())


def test_a_loss_that_is_no_number_is_told(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEngine, "_totals", lambda *_: ({"loss": float("nan")}, 1.0))
    with pytest.raises(NumericsError, match="the loss is nan"):
        dry_run(tiny_config())


def test_what_a_run_would_refuse_a_dry_run_refuses(tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="not one of 24 packs"):
        dry_run(tiny_config(epochs=0.01))
