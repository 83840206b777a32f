"""The rank of this process, the number of processes, and the device."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sft.config.model import Device
from sft.errors import ConfigError

_LAUNCHERS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
"""Variables for rank, number of processes and rank on this node, as set by torchrun and by srun."""


@dataclass(frozen=True)
class World:
    """One process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of the same node: the number of its device."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "World":
        """The rank that a launcher gave this process; without a launcher, a single process.

        Raises: ConfigError if the launcher's numbers contradict each other.
        """
        for names in _LAUNCHERS:
            if names[1] in environ:
                return cls._checked(names, [environ.get(name, "0") for name in names])
        return cls()

    @classmethod
    def _checked(cls, names: tuple[str, ...], values: list[str]) -> "World":
        shown = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        try:
            rank, size, local_rank = map(int, values)
        except ValueError:
            raise ConfigError(f"{shown}: expected whole numbers") from None
        if not (0 <= rank < size and 0 <= local_rank <= rank):
            raise ConfigError(f"{shown}: no such rank among {size} processes", hint="start it by torchrun or srun")
        return cls(rank, size, local_rank)


def choose_device(name: Device, local_rank: int = 0) -> torch.device:
    """The device to compute on.

    Raises: ConfigError if CUDA is requested and there is none, or there are fewer devices than processes.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError(
            "device=cuda: PyTorch finds no CUDA device here",
            hint="start it on a node with a GPU and a CUDA build of PyTorch, or set device=cpu",
        )
    if name == "cpu" or not has_cuda:
        return torch.device("cpu")
    # Slurm may make only its own device visible to a process, as number 0.
    number = local_rank if torch.cuda.device_count() > 1 else 0
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this node has no device: PyTorch finds {torch.cuda.device_count()}",
            hint="start one process per GPU",
        )
    return torch.device("cuda", number)
