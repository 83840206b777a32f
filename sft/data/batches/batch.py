"""Packs concatenated into the flat token sequence that the model reads.

T = tokens of the batch without padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft.data.shards import Pack, Split
from sft.hashing import hashes

IGNORE = -1
"""Target of a position without loss."""


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass: the documents of some packs, concatenated without padding.

    `targets_T[t]` is the token that position t must predict, or IGNORE.
    """

    input_ids_T: NDArray[np.int64]
    targets_T: NDArray[np.int64]
    doc_lengths: tuple[int, ...]
    doc_ids: tuple[int, ...]
    packs: tuple[int, ...] = ()
    """Indices of the packs in their split."""
    doc_seeds: tuple[int, ...] = ()
    """Seed of the noise of each document; empty if there is no noise."""

    @classmethod
    def empty(cls) -> "Batch":
        """One token without loss, for a rank that has no pack left while others do."""
        return cls(np.zeros(1, np.int64), np.full(1, IGNORE, np.int64), (1,), ())

    @property
    def num_supervised(self) -> int:
        return int((self.targets_T != IGNORE).sum())


def join(packs: Sequence[Pack], indices: Sequence[int] = (), noise_seed: int | None = None) -> Batch:
    """Concatenate the documents of the packs and shift their loss masks into targets.

    With the noise seed of the step, each document gets a seed that depends only on its pack and its place in the pack.
    """
    ids_T = np.concatenate([pack.input_ids_T[: pack.num_tokens] for pack in packs]).astype(np.int64)
    mask_T = np.concatenate([pack.loss_mask_T[: pack.num_tokens] for pack in packs]).astype(bool)
    lengths_N = np.concatenate([pack.doc_lengths_N for pack in packs]).astype(np.int64)
    # A document's first token is never predicted: the token before it belongs to another document.
    mask_T[np.cumsum(lengths_N) - lengths_N] = False
    targets_T = np.full(len(ids_T), IGNORE, np.int64)
    targets_T[:-1] = np.where(mask_T[1:], ids_T[1:], IGNORE)
    doc_ids = tuple(int(doc_id) for pack in packs for doc_id in pack.doc_ids_N)
    doc_seeds = () if noise_seed is None else tuple(_doc_seeds(packs, hashes(noise_seed, indices)))
    return Batch(ids_T, targets_T, tuple(map(int, lengths_N)), doc_ids, tuple(indices), doc_seeds)


def micro_batches(split: Split, indices: Sequence[int], size: int, noise_seed: int | None = None) -> Iterator[Batch]:
    """Some packs of one optimizer step, `size` at a time."""
    for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        yield join([split[index] for index in chosen], chosen, noise_seed)


def _doc_seeds(packs: Sequence[Pack], pack_seeds: NDArray[np.uint64]) -> Iterator[int]:
    for pack, seed in zip(packs, pack_seeds, strict=True):
        yield from map(int, hashes(seed, range(len(pack.doc_ids_N))))
