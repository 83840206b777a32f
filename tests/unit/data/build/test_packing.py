"""Packing: nothing lost, nothing doubled, nothing too full, and hardly a token empty."""

import bisect
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.build import packing as module
from sft.data.build.packing import Bins, pack

CAPACITY = 4096


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> int:
    """The number of bins of the textbook's method: longest first, each into the fullest bin that still has room."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(spaces, length)
        space = spaces.pop(place) if place < len(spaces) else capacity
        bisect.insort(spaces, space - length)
    return len(spaces)


def one_after_the_other(lengths: Sequence[int], capacity: int) -> list[Counter[int]]:
    """What the bins hold if they are filled document by document, by trying all lengths."""
    left = Counter(lengths)
    bins: list[Counter[int]] = []
    while left:
        held: Counter[int] = Counter()
        space = capacity
        while fitting := [length for length in left if length <= space]:
            pairs = (Counter((length, space - length)) for length in range((space + 1) // 2, space))
            perfect = next((pair for pair in pairs if pair <= left), None) if held and space not in left else None
            taken = perfect or Counter({max(fitting): 1})
            held, left = held + taken, left - taken
            space = capacity - sum(held.elements())
        bins.append(held)
    return bins


def lower_bound(lengths: Sequence[int], capacity: int) -> int:
    return -(-sum(lengths) // capacity)


def checked(lengths: Sequence[int], capacity: int) -> Bins:
    """The bins, after what must hold for all of them."""
    bins = pack(np.array(lengths, np.uint32), capacity)
    assert np.array_equal(np.sort(bins.documents), np.arange(len(lengths)))
    assert bins.ends[0] == 0
    assert bins.ends[-1] == len(lengths)
    ends_tokens = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64)[bins.documents])])[bins.ends]
    assert all(0 < num_tokens <= capacity for num_tokens in np.diff(ends_tokens))
    return bins


@st.composite
def stocks(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 80))
    longest = draw(st.integers(1, capacity))
    return draw(st.lists(st.integers(1, longest), max_size=60)), capacity


@st.composite
def stocks_of_few_lengths(draw: st.DrawFn) -> tuple[list[int], int]:
    """Many documents of each length, so that bins come out alike."""
    capacity = draw(st.integers(1, 60))
    counts = draw(st.dictionaries(st.integers(1, capacity), st.integers(1, 40), max_size=6))
    return draw(st.permutations([length for length, count in counts.items() for _ in range(count)])), capacity


@given(stock=stocks())
@settings(max_examples=500)
def test_every_document_is_in_one_bin_and_no_bin_overflows(stock: tuple[list[int], int]) -> None:
    lengths, capacity = stock
    bins = checked(lengths, capacity)
    assert lower_bound(lengths, capacity) <= len(bins) <= best_fit_decreasing(lengths, capacity) + 1


@given(stock=st.one_of(stocks(), stocks_of_few_lengths()))
@settings(max_examples=300)
def test_bins_taken_at_once_are_those_of_filling_one_after_the_other(stock: tuple[list[int], int]) -> None:
    lengths, capacity = stock
    bins = checked(lengths, capacity)
    assert [Counter(lengths[index] for index in chosen) for chosen in bins] == one_after_the_other(lengths, capacity)


@given(stock=stocks())
def test_equal_input_gives_equal_bins(stock: tuple[list[int], int]) -> None:
    lengths, capacity = stock
    strided = np.repeat(np.array(lengths, np.uint16), 2)[::2]
    for one, other in ((np.array(lengths, np.int64), strided), (np.array(lengths, np.uint64), strided)):
        assert np.array_equal(pack(one, capacity).documents, pack(other, capacity).documents)
        assert np.array_equal(pack(one, capacity).ends, pack(other, capacity).ends)


@pytest.mark.parametrize("part", [1, 3, 50])
def test_documents_of_one_length_keep_their_order(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PART", part)
    lengths = np.random.default_rng(0).integers(1, 12, 100)
    documents = checked(lengths.tolist(), 20).documents
    for length in np.unique(lengths):
        assert np.array_equal(documents[lengths[documents] == length], np.flatnonzero(lengths == length))


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        ([], 10, []),
        ([10], 10, [[0]]),
        ([10, 10], 10, [[0], [1]]),
        ([1] * 10, 10, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]),
        ([1] * 11, 10, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [10]]),
        ([6, 4, 5, 5], 10, [[0, 1], [2, 3]]),
        ([7, 3, 6, 4, 5, 5, 9, 1], 10, [[6, 7], [0, 1], [2, 3], [4, 5]]),
        ([4, 4, 4, 3, 3, 3, 3, 3, 3], 10, [[0, 3, 4], [1, 5, 6], [2, 7, 8]]),
        # The only document of 2 tokens is not taken twice; 3 and 1 fill the same space.
        ([6, 2, 3, 1], 10, [[0, 2, 3], [1]]),
        ([70000, 30000, 1], 100_000, [[0, 1], [2]]),
    ],
)
def test_the_bins_of_a_few_documents_are_known(lengths: list[int], capacity: int, expected: list[list[int]]) -> None:
    assert [chosen.tolist() for chosen in checked(lengths, capacity)] == expected


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


def test_a_hundred_times_as_many_documents_are_hardly_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = instructions_and_chats(np.random.default_rng(0), 4000)
    fills = 0
    fill = module._fill

    def counted(stock: module._Stock) -> dict[int, int]:
        nonlocal fills
        fills += 1
        return fill(stock)

    monkeypatch.setattr(module, "_fill", counted)
    bins = pack(np.tile(lengths, 100), CAPACITY)
    assert len(bins) <= lower_bound(lengths * 100, CAPACITY) + 10
    assert fills <= 2 * len(set(lengths)) < len(bins) / 10


@pytest.mark.parametrize("index", [-1, 2])
def test_a_bin_that_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=f"bin {index} of 2"):
        pack(np.array([10, 10]), 10)[index]


@pytest.mark.parametrize("lengths", [[0], [11], [5, 0], [5, 11], [-1]])
def test_a_document_that_fits_nowhere_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 10"):
        pack(np.array(lengths), 10)
