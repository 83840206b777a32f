"""Which packs an optimizer step trains on: a pure function of (seed, epoch, position).

The sampler has no state to save or to fast-forward: step k of a run is the same at any world size and after any resume.
"""

import math
from collections.abc import Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.config.train import TrainConfig
from sft.hashing import hashes, mix


@dataclass(frozen=True)
class Order:
    """The order of a whole run.

    Epochs follow each other without a gap: a batch may hold the end of one epoch and the start of the next,
    and only the very last batch of the run may be shorter.
    Invariant: every pack is used exactly once per full epoch.
    """

    num_packs: int
    batch_packs: int
    epochs: float
    seed: int
    max_steps: int | None = None

    @classmethod
    def of(cls, config: TrainConfig, split: Sized) -> "Order":
        """The order in which a run with these settings trains on a split."""
        return cls(len(split), config.batch_packs, config.epochs, config.seed, config.max_steps)

    @property
    def num_samples(self) -> int:
        """Packs used over the whole run, repeats included."""
        samples = round(self.num_packs * self.epochs)
        return samples if self.max_steps is None else min(samples, self.max_steps * self.batch_packs)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return math.ceil(self.num_samples / self.batch_packs)

    def batch(self, step: int) -> list[int]:
        """The packs of optimizer step `step`, counted from 0."""
        first = step * self.batch_packs
        return [self._pack(position) for position in range(first, min(first + self.batch_packs, self.num_samples))]

    def noise_seed(self, step: int) -> int:
        """The seed of the noise of optimizer step `step`."""
        return int(hashes(hashes(self.seed, _NOISE), step)[0])

    def _pack(self, position: int) -> int:
        epoch, place = divmod(position, self.num_packs)
        return int(_permutation(self.num_packs, self.seed, epoch)[place])


_NOISE = 0x6E6F697365
"""Separates the seeds for noise from those for the order: no run has this many epochs."""


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[Any]:
    """Indices sorted by a hash of (seed, epoch, index).

    A library's shuffle is not used, because it may change with the library's version.
    """
    start = hashes(seed, epoch)
    keys = mix(np.add(start, np.arange(count, dtype=np.uint64), dtype=np.uint64))
    return np.argsort(keys, kind="stable")
