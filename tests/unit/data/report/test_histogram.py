"""Bars tell the counts of their bins."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.report.histogram import HEIGHT, WIDTH, Histogram, log_edges, log_histogram, share_histogram

NUMBERS = st.lists(st.integers(0, 70_000), min_size=1, max_size=50)


def counts(histogram: Histogram) -> dict[str, int]:
    """The count of every bar by the name of its bin."""
    return {
        bar.title.split(": ")[0]: int(re.findall(r": ([\d,]+) ", bar.title)[0].replace(",", ""))
        for bar in histogram.bars
    }


@pytest.mark.parametrize(
    ("low", "high", "edges"),
    [
        (0, 0, [0, 1, 2, 3]),
        (1, 8, [1, 2, 3, 4, 6, 8, 12]),
        (5, 11, [4, 6, 8, 12]),
        (100, 4096, [96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]),
    ],
)
def test_edges_are_powers_of_two_and_the_means_between(low: int, high: int, edges: list[int]) -> None:
    assert log_edges(low, high) == edges


@given(NUMBERS)
def test_every_number_is_counted_once_and_inside_the_drawing(numbers: list[int]) -> None:
    histogram = log_histogram(np.array(numbers), log_edges(min(numbers), max(numbers)), "tokens", "documents")
    assert sum(counts(histogram).values()) == len(numbers)
    assert histogram.highest == max(counts(histogram).values())
    assert all(0 <= bar.x <= bar.x + bar.width <= WIDTH for bar in histogram.bars)
    assert all(0 < bar.height <= HEIGHT and bar.y + bar.height == HEIGHT for bar in histogram.bars)
    assert len(histogram.ticks) <= 8


def test_a_bar_is_named_by_its_bin() -> None:
    histogram = log_histogram(np.array([4, 5, 6, 1]), log_edges(1, 6), "tokens", "documents")
    assert counts(histogram) == {"1 tokens": 1, "4–5 tokens": 2, "6–7 tokens": 1}
    assert histogram.bars[1].title == "4–5 tokens: 2 documents (50.0%)"


@pytest.mark.parametrize(
    ("part", "whole", "name"),
    [(0, 10, "0–5 %"), (1, 20, "5–10 %"), (499, 1000, "45–50 %"), (999, 1000, "95–100 %"), (7, 7, "95–100 %")],
)
def test_a_share_lies_in_its_bin_to_the_last_digit(part: int, whole: int, name: str) -> None:
    histogram = share_histogram(np.array([part], np.uint32), np.array([whole], np.uint32), "loss", "documents")
    assert counts(histogram) == {f"{name} loss": 1}
