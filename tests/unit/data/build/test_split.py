"""The held-out conversations are a pure function of their first questions and a seed."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sft.data.build.split import held_out, keys


def digests(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    return rng.integers(0, 2**64, count, dtype=np.uint64)


DOCUMENTS = st.lists(
    st.tuples(st.integers(0, 30).map(lambda number: number * 2**59 + 12345), st.integers(0, 3)), max_size=60
)
SHARES = st.sampled_from([0.001, 0.01, 0.1, 0.3, 0.49])


def arrays(documents: list[tuple[int, int]]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    return np.array([d for d, _ in documents], np.uint64), np.array([s for _, s in documents], np.int32)


@given(documents=DOCUMENTS, share=SHARES, seed=st.integers(0, 2**40))
def test_equal_conversations_are_on_one_side(documents: list[tuple[int, int]], share: float, seed: int) -> None:
    digest, source = arrays(documents)
    valid = held_out(digest, source, share, None, seed)
    assert valid.shape == digest.shape
    assert not set(digest[valid].tolist()) & set(digest[~valid].tolist())


@given(documents=DOCUMENTS, share=SHARES, seed=st.integers(0, 2**40))
def test_every_source_of_two_gives_something_and_never_all_is_held_out(
    documents: list[tuple[int, int]], share: float, seed: int
) -> None:
    digest, source = arrays(documents)
    valid = held_out(digest, source, share, None, seed)
    assert len(documents) == 0 or not valid.all()
    for number in set(source.tolist()):
        mine = source == number
        if len(set(digest[mine].tolist())) > 1:
            assert valid[mine].any()


@given(documents=DOCUMENTS, share=SHARES, seed=st.integers(0, 2**40), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(
    documents: list[tuple[int, int]], share: float, seed: int, shuffle: Random
) -> None:
    mixed = list(documents)
    shuffle.shuffle(mixed)
    before, after = (held_out(*arrays(rows), share, None, seed) for rows in (documents, mixed))
    assert sorted(zip(documents, before.tolist(), strict=True)) == sorted(zip(mixed, after.tolist(), strict=True))


@pytest.mark.parametrize(("count", "share"), [(100_000, 0.01), (1000, 0.1), (150, 0.3), (40, 0.49)])
@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_distinct_conversations_is_held_out(count: int, share: float, seed: int) -> None:
    distinct = digests(np.random.default_rng(0), count)
    repeated = np.concatenate([distinct, distinct, distinct[:1]])
    valid = held_out(repeated, np.zeros(len(repeated), np.int32), share, None, seed)
    found = len(set(repeated[valid].tolist()))
    assert found == (keys(distinct, seed) < share * 2.0**64).sum()
    assert abs(found - count * share) < 4 * (count * share * (1 - share)) ** 0.5  # four standard deviations of chance


@pytest.mark.parametrize(("count", "share"), [(40, 1e-9), (2, 1e-9), (2, 0.49)])
def test_a_share_of_less_than_one_conversation_is_one(count: int, share: float) -> None:
    distinct = digests(np.random.default_rng(0), count)
    valid = held_out(distinct, np.zeros(count), share, None, seed=0)
    assert distinct[valid].tolist() == [distinct[keys(distinct, 0).argmin()]]


def test_what_is_held_out_stays_so_whatever_joins_the_source() -> None:
    """From a source that is large enough, so that the share is not less than one conversation."""
    digest = digests(np.random.default_rng(0), 5000)
    few, many = (held_out(digest[:n], np.zeros(n), 0.01, None, seed=2) for n in (1000, 5000))
    assert few.any()
    assert few.tolist() == many[:1000].tolist()


# ------------------------------------------------------------------------------------------------ a number of them


@pytest.mark.parametrize("count", [1, 7, 99])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_number_is_held_out_of_every_source_instead_of_a_share(count: int, share: float) -> None:
    digest = digests(np.random.default_rng(0), 500)
    source = np.repeat([0, 1], [400, 100])
    valid = held_out(digest, source, share, count, seed=3)
    assert [int(valid[source == number].sum()) for number in (0, 1)] == [count, count]
    for number in (0, 1):
        mine, place = source == number, keys(digest, 3)
        assert place[mine & valid].max() < place[mine & ~valid].min()


@given(documents=DOCUMENTS, count=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_a_number_counts_conversations_and_keeps_those_alike_together(
    documents: list[tuple[int, int]], count: int, seed: int
) -> None:
    digest, _ = arrays(documents)
    valid = held_out(digest, np.zeros(len(digest)), 0.01, count, seed)
    assert not set(digest[valid].tolist()) & set(digest[~valid].tolist())
    assert len(documents) == 0 or not valid.all()
    groups, sizes = np.unique(digest, return_counts=True)
    chosen = np.isin(groups, digest[valid])
    last = sizes[chosen][keys(groups[chosen], seed).argmax()] if chosen.any() else 0
    assert valid.sum() - last < count
    assert valid.sum() >= count or len(groups) - chosen.sum() <= 1


def test_a_number_larger_than_the_source_leaves_one_in_training() -> None:
    valid = held_out(digests(np.random.default_rng(0), 10), np.zeros(10), 0.01, 1000, seed=0)
    assert valid.sum() == 9


@pytest.mark.parametrize("sources", [[0], [0, 1, 2]])
def test_a_source_of_one_conversation_stays_in_training(sources: list[int]) -> None:
    digest = digests(np.random.default_rng(0), len(sources))
    assert not held_out(digest, np.array(sources), 0.4, None, seed=0).any()


def test_nothing_is_held_out_of_nothing() -> None:
    assert held_out(np.zeros(0, np.uint64), np.zeros(0, np.int32), 0.1, None, 0).tolist() == []


def test_without_a_share_nothing_is_held_out() -> None:
    assert not held_out(digests(np.random.default_rng(0), 100), np.zeros(100), 0, None, 0).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_favours_no_digest(seed: int) -> None:
    digest = digests(np.random.default_rng(seed), 100_000)
    chosen = digest[held_out(digest, np.zeros(len(digest)), 0.01, None, seed)] / 2.0**64
    assert abs(chosen.mean() - 0.5) < 0.05
    assert abs(chosen.std() - 12**-0.5) < 0.03


def test_each_source_is_split_as_if_it_were_alone() -> None:
    digest = digests(np.random.default_rng(0), 500)
    source = np.repeat([0, 1], [400, 100])
    together = held_out(digest, source, 0.1, None, seed=3)
    apart = [
        held_out(digest[source == number], np.zeros((source == number).sum()), 0.1, None, seed=3) for number in (0, 1)
    ]
    assert together.tolist() == np.concatenate(apart).tolist()


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_seeds_choose_independently(one: int, other: int) -> None:
    digest = digests(np.random.default_rng(0), 100_000)
    first, second = (held_out(digest, np.zeros(len(digest)), 0.01, None, seed) for seed in (one, other))
    assert (first & second).sum() < 30  # 10 of 1000 by chance


@given(group=st.integers(0, 2**64 - 1), seed=st.integers(0, 2**64 - 1))
def test_a_conversation_s_place_is_plain_arithmetic_for_ever(group: int, seed: int) -> None:
    """A change here would move conversations between training and validation."""
    mixed = seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> shift)) * factor % 2**64
    mixed ^= mixed >> 31
    (found,) = keys(np.array([group], np.uint64), seed).tolist()
    assert found == (group ^ mixed) * 0x9E3779B97F4A7C15 % 2**64
