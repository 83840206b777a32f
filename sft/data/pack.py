"""Documents of a whole split into sequences of fixed capacity, hardly a token of which stays empty.

One bin after the other is filled, always with the longest document that still fits. As soon as two documents fill what
is left exactly, they do, and the bin is closed without a gap; best-fit decreasing, which never looks ahead, leaves more
of them. Lengths are small integers, so the lengths in stock are the bits of one long integer, and both questions are
answered by a few operations on it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# While this many more documents of one length fit, they are taken together, before looking for a perfect end.
_ROOM_TO_FINISH = 2


def pack(lengths: NDArray[Any], capacity: int) -> list[list[int]]:
    """Indices of the documents of each bin.

    Invariant: every index appears once; no bin exceeds the capacity; equal input gives equal bins.

    Raises: ValueError if a document is empty or longer than the capacity.
    """
    if not len(lengths):
        return []
    if not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()}, expected 1 to {capacity}")
    stock = _Stock(lengths, capacity)
    bins = []
    while stock.lengths:
        bins.append(_fill(stock, capacity))
    return bins


class _Stock:
    """The documents not packed yet, by length."""

    def __init__(self, lengths: NDArray[Any], capacity: int) -> None:
        by_length = np.argsort(lengths, kind="stable")
        groups = np.split(by_length, np.flatnonzero(np.diff(lengths[by_length])) + 1)
        # Reversed, so that taking from the end goes by index.
        self._documents: dict[int, list[int]] = {int(lengths[group[0]]): group[::-1].tolist() for group in groups}
        self._capacity = capacity
        self.lengths = sum(1 << length for length in self._documents)
        self._mirrored = sum(1 << (capacity - length) for length in self._documents)

    def longest(self, space: int) -> int:
        """The longest length in stock that fits, or -1."""
        return (self.lengths & ((2 << space) - 1)).bit_length() - 1

    def pair(self, space: int) -> tuple[int, int] | None:
        """Two lengths in stock that fill the space exactly, as equal as can be, so that short ones are saved."""
        half = (space + 1) // 2
        # Bit b is set if a document of b tokens and one of space - b tokens are in stock.
        both = (self.lengths & (self._mirrored >> (self._capacity - space))) >> half
        if not both:
            return None
        longer = half + (both & -both).bit_length() - 1
        shorter = space - longer
        is_one_document = longer == shorter and len(self._documents[longer]) == 1
        return None if is_one_document else (longer, shorter)

    def take(self, length: int, count: int) -> list[int]:
        """Remove up to `count` documents of a length."""
        documents = self._documents[length]
        taken = documents[: -count - 1 : -1]
        del documents[-count:]
        if not documents:
            self.lengths ^= 1 << length
            self._mirrored ^= 1 << (self._capacity - length)
        return taken


def _fill(stock: _Stock, capacity: int) -> list[int]:
    length = stock.longest(capacity)
    chosen: list[int] = []
    space = capacity
    while length > 0:
        taken = stock.take(length, max(1, space // length - _ROOM_TO_FINISH))
        chosen += taken
        space -= length * len(taken)
        length = stock.longest(space)
        if length != space and (pair := stock.pair(space)):
            return [*chosen, *stock.take(pair[0], 1), *stock.take(pair[1], 1)]
    return chosen
