"""Packs are divided among ranks so that none waits long for another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.batches.balance import balanced


@given(costs=st.lists(st.floats(0, 1e9), max_size=40), num_ranks=st.integers(1, 7))
def test_every_pack_has_one_rank_and_no_rank_two_packs_more_than_another(costs: list[float], num_ranks: int) -> None:
    packs = [100 + place for place in range(len(costs))]
    shares = balanced(packs, costs, num_ranks)
    assert sorted(pack for share in shares for pack in share) == packs
    assert len(shares) == num_ranks
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("costs", "num_ranks", "expected"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([9, 1, 1, 9], 2, [10, 10]),
        ([8, 7, 2, 1], 2, [9, 9]),
        ([5, 1], 1, [6]),
        ([5], 3, [5, 0, 0]),
    ],
)
def test_the_dear_packs_of_a_step_are_spread(costs: list[float], num_ranks: int, expected: list[float]) -> None:
    shares = balanced(range(len(costs)), costs, num_ranks)
    assert sorted((sum(costs[pack] for pack in share) for share in shares), reverse=True) == expected


def test_equal_costs_give_the_same_shares_every_time() -> None:
    assert balanced(range(9), [1.0] * 9, 4) == balanced(range(9), [1.0] * 9, 4)
