"""Which process this is, among how many, and what it computes on."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sft.config import Device
from sft.errors import ConfigError


@dataclass(frozen=True)
class World:
    """One process among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "World":
        """The place that a launcher gave this process (RANK, WORLD_SIZE); alone without one."""
        return cls(int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1")))


def choose_device(name: Device) -> torch.device:
    """The device to compute on.

    Raises: ConfigError if CUDA is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError(
            "device=cuda: PyTorch finds no CUDA device here",
            hint="start it on a node with a GPU and a CUDA build of PyTorch, or set device=cpu",
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")
