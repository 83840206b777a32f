"""Which packs an optimizer step trains on: a pure function of (seed, epoch, position).

There is no sampler state to save or to skip through: step k of a run is the same at any world size, after any resume.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


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

    @property
    def num_samples(self) -> int:
        """Packs used over the whole run, repeats counted."""
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
        """What the noise of optimizer step `step` is made from."""
        return int(hashes(hashes(self.seed, _NOISE), step)[0])

    def _pack(self, position: int) -> int:
        epoch, place = divmod(position, self.num_packs)
        return int(_permutation(self.num_packs, self.seed, epoch)[place])


_NOISE = 0x6E6F697365
"""Keeps the numbers for noise apart from those for the order: no run has as many epochs."""


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[Any]:
    """Indices sorted by a hash of (seed, epoch, index).

    Own arithmetic instead of a library's shuffle, because those may change with the library's version.
    """
    start = hashes(seed, epoch)
    keys = _mix(np.add(start, np.arange(count, dtype=np.uint64), dtype=np.uint64))
    return np.argsort(keys, kind="stable")


def hashes(seeds: ArrayLike, numbers: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit hash of each seed with each number, element by element; always an array with a dimension."""
    seed_N, number_N = (np.atleast_1d(np.asarray(values, np.uint64)) for values in (seeds, numbers))
    return _mix(np.add(_mix(seed_N), number_N))


def scatter(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter the bits of 64-bit integers; 0 stays 0.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014), a bijection.
    """
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return scatter(value + np.uint64(0x9E3779B97F4A7C15))
