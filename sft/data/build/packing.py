"""Pack the documents of a split into sequences of fixed capacity with almost no padding.

A bin takes the longest document that still fits, repeatedly. As soon as two documents fill the remaining space exactly,
the bin takes them and is full. Best-fit decreasing does not look ahead and usually leaves more padding.

The content of a bin depends only on which lengths remain, so successive bins are equal until one of these lengths runs
out. All of them are made at once: the search time grows with the number of distinct lengths, not of documents. Lengths
are small integers, so the remaining ones are the bits of one long integer, and a few bit operations find the next one.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Documents sorted at once: few enough to fit in the processor's cache.
_PART = 1 << 18


@dataclass(frozen=True, eq=False)
class Bins:
    """The indices of all documents, bin after bin; bin i is documents[ends[i] : ends[i + 1]]."""

    documents: NDArray[Any]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"bin {index} of {len(self)}")
        return self.documents[self.ends[index] : self.ends[index + 1]]


def pack(lengths: NDArray[Any], capacity: int) -> Bins:
    """Put every document into a bin.

    Invariant: every index appears once, those of one length in rising order; no bin exceeds the capacity; equal input
    gives equal bins.

    Raises: ValueError if a document is empty or longer than the capacity.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()}, expected 1 to {capacity}")
    lengths = lengths.astype(np.min_scalar_type(capacity), copy=False)
    counts = np.bincount(lengths, minlength=capacity + 1)
    laid, sizes = array(lengths.dtype.char), array("q", [0])
    for pattern, num_bins in _patterns(_Stock(counts)):
        laid += array(laid.typecode, pattern) * num_bins
        sizes += array("q", [len(pattern)]) * num_bins
    # Four bytes per index, or eight if there are more documents than four bytes can count.
    by_length, documents = np.empty((2, len(lengths)), np.result_type(np.int32, np.min_scalar_type(-len(lengths))))
    for indices, ranks in _ranked(lengths, counts):
        by_length[ranks] = indices
    # The n-th place for a length goes to the n-th document of that length.
    for places, ranks in _ranked(np.asarray(laid), counts):
        documents[places] = by_length[ranks]
    return Bins(documents, np.cumsum(sizes))


def _ranked(lengths: NDArray[Any], counts: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All indices, a part at a time, with their ranks in the stable order by length."""
    next_ranks = np.cumsum(counts) - counts
    for start in range(0, len(lengths), _PART):
        part = lengths[start : start + _PART]
        found = np.bincount(part, minlength=len(counts))
        ranks = np.arange(len(part)) + np.repeat(next_ranks - (np.cumsum(found) - found), found)
        yield start + np.argsort(part, kind="stable"), ranks
        next_ranks += found


class _Stock:
    """The number of documents of each length that are not packed yet."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self.capacity = len(counts) - 1
        self.counts: list[int] = counts.tolist()
        self.lengths = _bits(counts > 0)
        self._mirrored = _bits(counts[::-1] > 0)

    def longest(self, space: int) -> int:
        """The longest length in stock that fits, or -1."""
        return (self.lengths & ((2 << space) - 1)).bit_length() - 1

    def pair(self, space: int) -> tuple[int, ...]:
        """Two lengths in stock that fill the space exactly, as equal as possible, so that short ones remain."""
        half = (space + 1) // 2
        # Bit b is set if half + b and space - half - b are both in stock.
        both = (self.lengths & (self._mirrored >> (self.capacity - space))) >> half
        if both & 1 and 2 * half == space and self.counts[half] == 1:
            both -= 1  # only one document of this length is left, and the pair needs two
        longer = half + (both & -both).bit_length() - 1
        return (longer, space - longer) if both else ()

    def take(self, length: int, count: int) -> None:
        """Remove documents of a length."""
        self.counts[length] -= count
        if not self.counts[length]:
            self.lengths ^= 1 << length
            self._mirrored ^= 1 << (self.capacity - length)


def _bits(flags: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


def _patterns(stock: _Stock) -> Iterator[tuple[list[int], int]]:
    """The lengths in a bin and the number of successive bins with the same lengths, until the stock is empty."""
    while stock.lengths:
        pattern = _fill(stock)
        num_more = min([stock.counts[length] // count for length, count in pattern.items()])
        if num_more:
            for length, count in pattern.items():
                stock.take(length, count * num_more)
        yield [length for length, count in pattern.items() for _ in range(count)], 1 + num_more


def _fill(stock: _Stock) -> dict[int, int]:
    """Fill one bin from the stock: the number of documents by length."""
    pattern: dict[int, int] = {}
    space = stock.capacity
    while (length := stock.longest(space)) > 0:
        if pattern and length < space and (pair := stock.pair(space)):
            for length in pair:
                stock.take(length, 1)
                pattern[length] = pattern.get(length, 0) + 1
            break
        # While two of the longest fit, no other two fill the space; so all but one are taken before looking for a pair.
        count = min(stock.counts[length], max(1, space // length - 1))
        stock.take(length, count)
        pattern[length] = pattern.get(length, 0) + count
        space -= length * count
    return pattern
