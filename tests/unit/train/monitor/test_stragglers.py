import numpy as np
import pytest

from sft.train.monitor.stragglers import SlowRanks, own_seconds

WINDOW = 4


def windows(watch: SlowRanks, *factors_R: tuple[float, ...]) -> list[list[str]]:
    """What is said after each window in which the ranks compute so many times 0.2 s."""
    said = []
    for factors in factors_R:
        news = [watch.add(0.2 * np.array(factors)) for _ in range(WINDOW)]
        assert not any(news[:-1])
        said.append(news[-1])
    return said


def ranks(number: int) -> SlowRanks:
    return SlowRanks([f"node{rank}" for rank in range(number)], WINDOW)


EVEN, SLOW = (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.4, 1.0)


def test_rank_that_is_slow_for_three_windows_is_named_once_with_its_host_and_factor() -> None:
    said = windows(ranks(4), SLOW, SLOW, SLOW, SLOW, SLOW)
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0]
    assert "rank 2 on node2" in said[2][0]
    assert "1.40 times" in said[2][0]


def test_rank_that_recovers_is_named_once_more_and_again_if_it_falls_back() -> None:
    said = windows(ranks(4), *[SLOW] * 3, *[EVEN] * 4, *[SLOW] * 3)
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert "rank 2 on node2 keeps up" in said[5][0]


def test_windows_that_are_not_in_a_row_do_not_count() -> None:
    assert windows(ranks(4), SLOW, SLOW, EVEN, SLOW, SLOW, EVEN) == [[]] * 6


def test_rank_below_the_factor_is_never_named() -> None:
    assert windows(ranks(4), *[(1.0, 1.0, 1.29, 1.0)] * 5) == [[]] * 5


def test_of_two_ranks_the_slow_one_is_found() -> None:
    said = windows(ranks(2), *[(1.4, 1.0)] * 3)
    assert "rank 0 on node0" in said[2][0]


def test_single_long_steps_make_no_rank_slow() -> None:
    watch = ranks(3)
    hiccup, even = np.array([0.2, 0.2, 30.0]), np.full(3, 0.2)
    assert not any(watch.add(hiccup if step % WINDOW == 0 else even) for step in range(5 * WINDOW))


def test_several_slow_ranks_are_all_named() -> None:
    said = windows(ranks(5), *[(1.0, 2.0, 1.0, 1.0, 3.0)] * 3)
    assert [line.split(" takes")[0] for line in said[2]] == ["rank 1 on node1", "rank 4 on node4"]


@pytest.mark.parametrize("factors", [(1.0,), (0.0, 0.0)], ids=["one rank", "nothing computed"])
def test_nobody_is_slow_where_nobody_is_faster(factors: tuple[float, ...]) -> None:
    assert windows(ranks(len(factors)), *[factors] * 4) == [[]] * 4


@pytest.mark.parametrize(
    ("loading_s", "probe_s", "alone_s"),
    [
        ((0.0, 0.0, 0.0), (1e-3, 1e-3, 1e-3), (2.0, 2.0, 2.0)),
        ((0.0, 1.0, 0.0), (1e-3, 1e-3, 1e-3), (1.0, 2.0, 1.0)),
        ((0.0, 0.0, 0.0), (1e-3, 1e-3, 2e-3), (1.0, 1.0, 2.0)),
        ((0.5, 0.5, 1.0), (2e-3, 1e-3, 1e-3), (1.5, 1.0, 1.5)),
        ((3.0, 3.0, 0.0), (0.0, 0.0, 0.0), (3.0, 3.0, 0.0)),
    ],
    ids=["all equal", "one loads long", "one computes slowly", "one each", "nothing but loading"],
)
def test_time_alone_leaves_out_what_a_rank_waited_for_others(
    loading_s: tuple[float, ...], probe_s: tuple[float, ...], alone_s: tuple[float, ...]
) -> None:
    assert own_seconds(2.0, np.array(loading_s), np.array(probe_s)).tolist() == pytest.approx(alone_s)
