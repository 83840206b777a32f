"""Checks that replicas hold the same weights bit for bit, which detects a device that computes wrong results."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sft.errors import PeerError
from sft.train.distributed.ranks import RankGroup
from sft.train.engine.base import Engine
from sft.train.engine.fsdp import local

MODULUS = 1 << 52
"""Whole numbers below it are exact in the floats that processes exchange."""


def require_equal_replicas(engine: Engine, ranks: RankGroup) -> None:
    """Refuse to save weights whose replicas differ.

    Raises: PeerError naming the processes that differ from the first one with the same share.
    """
    if ranks.size == 1:
        return
    told = ranks.gather([engine.share, checksum(engine.model.parameters())])
    first = dict(reversed(told.tolist()))
    strays = [rank for rank, (share, total) in enumerate(told.tolist()) if total != first[share]]
    if strays:
        raise PeerError(
            f"processes {', '.join(map(str, strays))} hold other weights than the processes that hold the same share",
            hint="start again from the last checkpoint; if it is the same process again, look at its device",
        )


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> int:
    """A checksum over the bits of the tensors' local shares."""
    sums = [local(tensor).view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
    return int(torch.stack(sums).sum()) % MODULUS
