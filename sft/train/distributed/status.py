"""The status that all processes exchange once per step, in a single collective."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft.errors import PeerError
from sft.train.distributed.ranks import RankGroup

NO_PACK = -1
"""Padding for processes that computed fewer packs than others."""


@dataclass(frozen=True)
class RankStatus:
    """The status of a process after a step."""

    step: int
    """Optimizer steps done."""
    is_asked_to_stop: bool
    is_save_written: bool
    """True if it has written its part of the save in progress."""
    loading_s: float
    """Time spent loading batches during the step."""
    probe_s: float
    """Time that its device takes for a fixed computation."""
    packs: tuple[int, ...]
    """The packs that it has computed in the step."""

    def exchange(self, ranks: RankGroup, batch_packs: int) -> list["RankStatus"]:
        """The status of all ranks, by rank; a step has at most `batch_packs` packs, divided evenly.

        Raises: PeerError if not all have done the same number of steps.
        """
        most_packs = -(-batch_packs // ranks.size)
        everybody = [RankStatus.unpack(numbers) for numbers in ranks.gather(self.pack(most_packs))]
        require_same_step(everybody)
        return everybody

    def pack(self, most_packs: int) -> list[float]:
        """The status as numbers, equally many on every process: the packs are padded to `most_packs` at the end."""
        facts = [self.step, self.is_asked_to_stop, self.is_save_written, self.loading_s, self.probe_s]
        return [*facts, *self.packs, *[NO_PACK] * (most_packs - len(self.packs))]

    @classmethod
    def unpack(cls, numbers: NDArray[np.float64]) -> "RankStatus":
        """The status that was packed into these numbers."""
        step, is_asked_to_stop, is_save_written, loading_s, probe_s, *packs = numbers.tolist()
        computed = tuple(int(pack) for pack in packs if pack != NO_PACK)
        return cls(int(step), bool(is_asked_to_stop), bool(is_save_written), loading_s, probe_s, computed)


def require_same_step(statuses: Sequence[RankStatus]) -> None:
    """Make sure that all processes have done the same number of steps.

    Raises: PeerError if they have not.
    """
    steps = [status.step for status in statuses]
    if len(set(steps)) > 1:
        raise PeerError(f"the processes are at different steps: {steps}", hint="start them again")
