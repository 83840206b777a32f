"""Histograms as bars of small charts. Every number is an integer, so that equal data give equal charts."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 320, 80
"""Size of the plot in SVG units, without its labels."""
NUM_SHARES = 20
MAX_TICKS = 7


@dataclass(frozen=True)
class Bar:
    """One bar, in SVG units, y downwards."""

    x: int
    y: int
    width: int
    height: int
    title: str
    """Tooltip with the range and the count."""


@dataclass(frozen=True)
class Histogram:
    """A chart of counts."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[int, str], ...]
    """Positions and labels on the horizontal axis."""
    highest: int
    """The count at the top of the plot."""


def log_edges(low: int, high: int) -> list[int]:
    """Left edges of bins from `low` to beyond `high`: the powers of two and the means between them.

    Invariant: edges[0] <= low and high < edges[-1].
    """
    edges = [0, 1, 2, 3]
    while edges[-1] <= high:
        edges.append(2 * edges[-2])
    first = max(index for index, edge in enumerate(edges) if edge <= low)
    return edges[first:]


def log_histogram(values: NDArray[Any], edges: Sequence[int], what: str, counted: str) -> Histogram:
    """Counts of integers in bins of `log_edges`; `what` is their unit, `counted` the items that have these values."""
    bins = np.searchsorted(edges, values, side="right") - 1
    names = [f"{start:,}" + (f"–{stop - 1:,}" if stop - start > 1 else "") for start, stop in _pairs(edges)]
    return _drawn(np.bincount(bins, minlength=len(names)), [f"{name} {what}" for name in names], counted, edges)


def share_histogram(parts: NDArray[Any], wholes: NDArray[Any], what: str, counted: str) -> Histogram:
    """Counts of part / whole in steps of five per cent."""
    bins = np.minimum(parts.astype(np.int64) * NUM_SHARES // np.maximum(wholes, 1), NUM_SHARES - 1)
    step = 100 // NUM_SHARES
    names = [f"{start}–{start + step} % {what}" for start in range(0, 100, step)]
    labels = [f"{start} %" for start in range(0, 101, step)]
    return _drawn(np.bincount(bins, minlength=NUM_SHARES), names, counted, labels)


def _drawn(counts: NDArray[np.int64], names: Sequence[str], counted: str, edges: Sequence[int | str]) -> Histogram:
    highest, total = max(1, int(counts.max())), max(1, int(counts.sum()))
    places = [WIDTH * index // len(names) for index in range(len(edges))]
    bars = []
    for count, name, (left, right) in zip(counts.tolist(), names, _pairs(places), strict=True):
        # A bin that is not empty is always visible.
        height = max(2, HEIGHT * count // highest) if count else 0
        title = f"{name}: {count:,} {counted} ({count / total:.1%})"
        bars.append(Bar(left, HEIGHT - height, max(1, right - left - 1), height, title))
    step = -(-len(edges) // MAX_TICKS)
    step += step % 2 if len(edges) > MAX_TICKS else 0
    ticks = [(places[index], _label(edges[index])) for index in range(0, len(edges), step)]
    return Histogram(tuple(bar for bar in bars if bar.height), tuple(ticks), highest)


def _label(edge: int | str) -> str:
    return f"{edge:,}" if isinstance(edge, int) else edge


def _pairs(items: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(items))
