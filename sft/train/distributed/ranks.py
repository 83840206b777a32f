"""Exchanges of small numbers and JSON between the processes of a run, over a CPU process group.

All processes call every function in the same order. A single process communicates with no other.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from sft.errors import ConfigError, PeerError, SftError, from_json
from sft.train.distributed.errors import as_peer_errors
from sft.train.distributed.world import World

STDERR = 2
LONGEST_MEETING_TIMEOUTS = 3.0
"""Connecting takes three steps that respect the timeout, but hangs if another program listens at the port."""


class RankGroup:
    """The processes of a run, as seen from this one."""

    def __init__(self, world: World, group: "dist.ProcessGroup | None" = None) -> None:
        self.rank, self.size, self._group = world.rank, world.size, group

    @property
    def is_first(self) -> bool:
        """True for rank 0, which writes everything that is written once."""
        return self.rank == 0

    def gather(self, values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """The numbers of all ranks, equally many from each.

        Shapes: (size, number of values).
        """
        mine = torch.tensor(values, dtype=torch.float64)
        if self._group is None:
            return mine.numpy()[None]
        return torch.stack(self._all(mine)).numpy()

    def gather_json(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, by rank."""
        if self._group is None:
            return [value]
        mine = json.dumps(value).encode()
        sizes = self.gather([len(mine)]).astype(int)[:, 0]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        parts = zip(self._all(padded), sizes, strict=True)
        return [json.loads(part[:size].numpy().tobytes()) for part, size in parts]

    def broadcast(self, value: Any) -> Any:
        """The JSON value of rank 0."""
        return self.gather_json(value if self.is_first else None)[0]

    @contextmanager
    def raise_on_all(self) -> Iterator[None]:
        """Raise an SftError on every process if any raised one in the block, so that none waits for a failed one."""
        error: SftError | None = None
        try:
            yield
        except SftError as raised:
            error = raised
        try:
            everybody = self.gather_json(None if error is None else error.to_json())
        except PeerError:
            if error is None:
                raise
        if error is not None:
            raise error  # the cause, even if it can no longer be sent to the others
        for rank, found in enumerate(everybody):
            if found is not None:
                raise from_json(found, f"process {rank}")

    def _all(self, mine: torch.Tensor) -> list[torch.Tensor]:
        everybody = [torch.empty_like(mine) for _ in range(self.size)]
        with as_peer_errors():
            dist.all_gather(everybody, mine, group=self._group)
        return everybody


SINGLE = RankGroup(World())
"""The group of a process that trains alone."""


@contextmanager
def connected(
    world: World, device: torch.device, *, timeout_s: float, init_method: str = "env://"
) -> Iterator[RankGroup]:
    """Connect the processes of a run; tensors of models travel over NCCL between GPUs.

    Raises: ConfigError if the launcher named no meeting place, PeerError if not all processes connect in time.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1:
        yield RankGroup(world)
        return
    if init_method == "env://" and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError(
            f"{world.size} processes, but MASTER_ADDR and MASTER_PORT are not set",
            hint="start them by torchrun, or export both as slurm/train.sbatch does",
        )
    timeout = timedelta(seconds=timeout_s)
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}" if init_method == "env://" else init_method
    what = f"process {world.rank} of {world.size} did not find all others there"
    hint = "did all of them start, with the same number of processes? is the port free?"
    try:
        with ended_after(LONGEST_MEETING_TIMEOUTS * timeout_s, PeerError(what, on=place, hint=hint)):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                init_method=init_method,
                rank=world.rank,
                world_size=world.size,
                timeout=timeout,
            )
            group = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:
        raise PeerError(f"{what}: {error}", on=place, hint=hint) from error
    try:
        yield RankGroup(world, group)
    except PeerError:
        raise  # after a lost rank, destroying the group would wait for it again
    else:
        dist.destroy_process_group()


@contextmanager
def ended_after(limit_s: float, error: SftError, leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Print the error and exit with its code if the block takes longer than the limit, wherever it waits."""

    def end() -> None:
        os.write(STDERR, f"sft: {error}\n".encode())
        leave(error.exit_code)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
