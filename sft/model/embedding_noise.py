"""NEFTune: uniform noise on the input embeddings while training.

Every number of it is a hash of its document's seed, its token's position and its dimension. So the same documents get
the same noise however they are split into batches and among processes, on any device, and after any resume.

Shape letters: T tokens, D width of the embeddings.
Source: Jain et al., NEFTune: Noisy Embeddings Improve Instruction Finetuning, 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sft.hashing import hashes

_NUM_BITS = 23
"""Random bits per number: as many as fp32 represents exactly, with a sign."""


def _signed(value: int) -> int:
    """The signed 64-bit integer with the same bits, since PyTorch multiplies only signed ones."""
    return value - (1 << 64)


# The constants of SplitMix64 (Steele, Lea, Flood, 2014), whose stream of numbers for a token's seed this is.
_STEP, _FACTORS, _SHIFTS = _signed(0x9E3779B97F4A7C15), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB), (30, 27, 31)


@dataclass(frozen=True, eq=False)
class EmbeddingNoise:
    """Noise for a flat row of tokens."""

    seeds_T: Tensor
    """int64; those of a token's dimensions follow from it."""
    unit_T: Tensor
    """The difference between two neighboring values of a token's noise, fp32."""

    @classmethod
    def of(
        cls, lengths: Sequence[int], doc_seeds: Sequence[int], alpha: float, width: int, device: torch.device | str
    ) -> "EmbeddingNoise":
        """Noise between ±alpha / √(L · D) on every token of a document of L tokens."""
        lengths_N = np.asarray(lengths)
        positions_T = np.concatenate([np.arange(length) for length in lengths])
        seeds_T = hashes(np.repeat(np.asarray(doc_seeds, np.uint64), lengths_N), positions_T)
        units_N = alpha / np.sqrt(lengths_N * width) / (1 << _NUM_BITS)
        unit_T = np.repeat(units_N.astype(np.float32), lengths_N)
        return cls(torch.from_numpy(seeds_T.view(np.int64)).to(device), torch.from_numpy(unit_T).to(device))

    @torch.no_grad()
    def values(self, width: int) -> Tensor:
        """The noise itself.

        Shapes: (T, D), fp32.
        """
        steps_D = torch.arange(1, width + 1, device=self.seeds_T.device) * _STEP
        bits_TD = _scattered_(self.seeds_T[:, None] + steps_D)
        # Odd numbers around 0, so that the noise has no direction.
        odd_TD = _shifted(bits_TD, 64 - _NUM_BITS).mul_(2).add_(1 - (1 << _NUM_BITS))
        return odd_TD.float().mul_(self.unit_T[:, None])

    def added_to(self, x_TD: Tensor) -> Tensor:
        """Embeddings with their noise."""
        return x_TD + self.values(x_TD.shape[1])


def _scattered_(value: Tensor) -> Tensor:
    """Scatter the bits of 64-bit integers in place, as `sft.hashing.scatter` does."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        value.bitwise_xor_(_shifted(value, shift)).mul_(_signed(factor))
    return value.bitwise_xor_(_shifted(value, _SHIFTS[-1]))


def _shifted(value: Tensor, places: int) -> Tensor:
    """The bits moved to the right with zeros behind them, as for unsigned numbers."""
    return (value >> places).bitwise_and_((1 << (64 - places)) - 1)
