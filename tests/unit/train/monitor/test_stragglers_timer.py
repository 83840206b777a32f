from collections.abc import Iterator

import torch

from sft.train.monitor.stragglers import RankTimer

CPU = torch.device("cpu")


class Clock:
    """Advances by a tenth of a second with every look at it, and by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.1
        return self.now_s


def test_time_that_batches_take_to_come_is_counted_and_time_with_them_is_not() -> None:
    clock = Clock()
    timer = RankTimer(CPU, clock)

    def batches() -> Iterator[int]:
        for number in range(3):
            clock.now_s += 2.0
            yield number

    seen = []
    for batch in timer.loading(batches()):
        clock.now_s += 50.0
        seen.append(batch)
    assert seen == [0, 1, 2]
    assert round(timer.take()[0], 6) == 6.4  # three batches and a look at the end, at 0.1 s each
    assert timer.take()[0] == 0.0


def test_probe_takes_the_time_of_its_own_arithmetic() -> None:
    clock = Clock()
    timer = RankTimer(CPU, clock)
    clock.now_s += 9.0
    assert round(timer.take()[1], 6) == 0.1


def test_probe_leaves_the_random_numbers_of_the_run_alone() -> None:
    before = torch.get_rng_state()
    RankTimer(CPU, Clock()).take()
    assert torch.equal(torch.get_rng_state(), before)
