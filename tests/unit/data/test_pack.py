"""Packing: nothing lost, nothing doubled, nothing too full, and hardly a token empty."""

import bisect
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.pack import pack

CAPACITY = 4096


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> int:
    """The number of bins of the textbook's method: longest first, each into the fullest bin that still has room."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(spaces, length)
        space = spaces.pop(place) if place < len(spaces) else capacity
        bisect.insort(spaces, space - length)
    return len(spaces)


def lower_bound(lengths: Sequence[int], capacity: int) -> int:
    return -(-sum(lengths) // capacity)


def checked(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The bins, after what must hold for all of them."""
    bins = pack(np.array(lengths, np.uint32), capacity)
    assert sorted(index for chosen in bins for index in chosen) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in chosen) <= capacity for chosen in bins)
    assert len(bins) >= lower_bound(lengths, capacity)
    return bins


@st.composite
def stocks(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 80))
    longest = draw(st.integers(1, capacity))
    return draw(st.lists(st.integers(1, longest), max_size=60)), capacity


@given(stock=stocks())
@settings(max_examples=500)
def test_every_document_is_in_one_bin_and_no_bin_overflows(stock: tuple[list[int], int]) -> None:
    lengths, capacity = stock
    bins = checked(lengths, capacity)
    assert len(bins) <= best_fit_decreasing(lengths, capacity) + 1


@given(stock=stocks())
def test_equal_input_gives_equal_bins(stock: tuple[list[int], int]) -> None:
    lengths, capacity = stock
    assert pack(np.array(lengths), capacity) == pack(np.array(lengths, np.uint16), capacity)


@given(stock=stocks())
def test_documents_of_one_length_keep_their_order(stock: tuple[list[int], int]) -> None:
    lengths, capacity = stock
    taken = [index for chosen in pack(np.array(lengths), capacity) for index in chosen]
    for length in set(lengths):
        same = [index for index in taken if lengths[index] == length]
        assert same == sorted(same)


@pytest.mark.parametrize(
    ("lengths", "capacity", "num_bins"),
    [
        ([], 10, 0),
        ([10], 10, 1),
        ([10, 10], 10, 2),
        ([1] * 10, 10, 1),
        ([1] * 11, 10, 2),
        ([6, 4, 5, 5], 10, 2),
        ([7, 3, 6, 4, 5, 5, 9, 1], 10, 4),
        ([4, 4, 4, 3, 3, 3, 3, 3, 3], 10, 3),
    ],
)
def test_a_perfect_packing_of_a_few_is_found(lengths: list[int], capacity: int, num_bins: int) -> None:
    assert len(checked(lengths, capacity)) == num_bins


def instructions_and_chats(rng: np.random.Generator, count: int) -> list[int]:
    """Many short instructions, some chats up to the whole length, and pieces that fill it exactly."""
    short = rng.lognormal(np.log(160), 0.7, count * 8 // 10)
    chats = rng.lognormal(np.log(900), 0.9, count * 2 // 10)
    full = np.full(count // 200, CAPACITY)
    return [int(length) for length in np.clip(np.concatenate([short, chats, full]).astype(int) + 20, 20, CAPACITY)]


@pytest.mark.parametrize("seed", range(3))
def test_a_mix_of_instructions_and_chats_is_packed_without_gaps(seed: int) -> None:
    lengths = instructions_and_chats(np.random.default_rng(seed), 20_000)
    bins = checked(lengths, CAPACITY)
    assert sum(lengths) / (len(bins) * CAPACITY) >= 0.9995
    assert len(bins) <= lower_bound(lengths, CAPACITY) + 1
    assert len(bins) <= best_fit_decreasing(lengths, CAPACITY)


@pytest.mark.parametrize("seed", range(3))
def test_lengths_without_any_short_ones_are_packed_nearly_as_well_as_by_the_textbook(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, CAPACITY + 1, 2000).tolist()
    assert len(checked(lengths, CAPACITY)) <= best_fit_decreasing(lengths, CAPACITY) * 1.01


@pytest.mark.parametrize("lengths", [[0], [11], [5, 0], [5, 11], [-1]])
def test_a_document_that_fits_nowhere_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 10"):
        pack(np.array(lengths), 10)
