"""An engine trains what its caller brings: here next-token loss and, beside it, a number to report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft.config.train import TrainConfig
from sft.data.batches.batch import micro_batches
from sft.data.shards import Shards
from sft.model.objectives.next_token import NextToken
from sft.train.engine.native import TorchEngine
from tests.support.models import make_engine

CPU = torch.device("cpu")


class WithCount(NextToken):
    """Reports how many tokens are supervised."""

    names = ("loss", "count")

    def forward(self, *inputs: Any, **settings: Any) -> dict[str, Tensor]:
        *_, targets_T = inputs
        return {**super().forward(*inputs, **settings), "count": (targets_T >= 0).sum()}


def test_several_sums_are_reported_and_only_the_loss_is_minimised(
    tiny_config: Callable[..., TrainConfig], tiny_shards: Path
) -> None:
    config, shards = tiny_config(), Shards.open(tiny_shards)
    plain = make_engine(config, shards)
    engine = TorchEngine(WithCount(make_engine(config, shards).model), config, CPU)
    split, packs = shards.split("train"), [0, 3, 5, 8]
    num_supervised = int(split.num_supervised_P[packs].sum())
    for batch in micro_batches(split, packs, 2):
        for each in (plain, engine):
            each.forward_backward(batch, num_supervised, is_last=True)
    expected, found = plain.step(1e-3), engine.step(1e-3)
    assert expected.sums == {"loss": expected.loss_sum}
    assert found.sums == {"loss": expected.loss_sum, "count": num_supervised}
    assert found.grad_norm == expected.grad_norm
    assert all(map(torch.equal, engine.model.parameters(), plain.model.parameters()))
