"""The held-out conversations are a pure function of content and seed."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sft.data.split import held_out


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
    valid = held_out(digest, source, share, seed)
    assert valid.shape == digest.shape
    assert not set(digest[valid].tolist()) & set(digest[~valid].tolist())


@given(documents=DOCUMENTS, share=SHARES, seed=st.integers(0, 2**40))
def test_every_source_of_two_gives_something_and_never_all_is_held_out(
    documents: list[tuple[int, int]], share: float, seed: int
) -> None:
    digest, source = arrays(documents)
    valid = held_out(digest, source, share, seed)
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
    before, after = (held_out(*arrays(rows), share, seed) for rows in (documents, mixed))
    assert sorted(zip(documents, before.tolist(), strict=True)) == sorted(zip(mixed, after.tolist(), strict=True))


@pytest.mark.parametrize(("count", "share", "expected"), [(1000, 0.01, 10), (150, 0.01, 2), (40, 0.01, 1), (2, 0.4, 1)])
def test_the_share_of_distinct_conversations_is_held_out(count: int, share: float, expected: int) -> None:
    distinct = digests(np.random.default_rng(0), count)
    repeated = np.concatenate([distinct, distinct, distinct[:1]])
    valid = held_out(repeated, np.zeros(len(repeated), np.int32), share, seed=0)
    assert len(set(repeated[valid].tolist())) == expected


@pytest.mark.parametrize("sources", [[0], [0, 1, 2]])
def test_a_source_of_one_conversation_stays_in_training(sources: list[int]) -> None:
    digest = digests(np.random.default_rng(0), len(sources))
    assert not held_out(digest, np.array(sources), 0.4, seed=0).any()


def test_nothing_is_held_out_of_nothing() -> None:
    assert held_out(np.zeros(0, np.uint64), np.zeros(0, np.int32), 0.1, 0).tolist() == []


def test_without_a_share_nothing_is_held_out() -> None:
    assert not held_out(digests(np.random.default_rng(0), 100), np.zeros(100), 0, 0).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_favours_no_digest(seed: int) -> None:
    digest = digests(np.random.default_rng(seed), 100_000)
    chosen = digest[held_out(digest, np.zeros(len(digest)), 0.01, seed)] / 2.0**64
    assert abs(chosen.mean() - 0.5) < 0.05
    assert abs(chosen.std() - 12**-0.5) < 0.03


def test_each_source_is_split_as_if_it_were_alone() -> None:
    digest = digests(np.random.default_rng(0), 500)
    source = np.repeat([0, 1], [400, 100])
    together = held_out(digest, source, 0.1, seed=3)
    apart = [held_out(digest[source == number], np.zeros((source == number).sum()), 0.1, seed=3) for number in (0, 1)]
    assert together.tolist() == np.concatenate(apart).tolist()


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_seeds_choose_independently(one: int, other: int) -> None:
    digest = digests(np.random.default_rng(0), 100_000)
    first, second = (held_out(digest, np.zeros(len(digest)), 0.01, seed) for seed in (one, other))
    assert (first & second).sum() < 30  # 10 of 1000 by chance
