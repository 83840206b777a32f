import dataclasses
import json
import math
import random
from collections.abc import Iterable

import pytest

from sft.train.engine.base import EMPTY_STEP, StepResult
from sft.train.monitor.counts import Counts, ScaleChange, Spike, loss_limit, summary

GOOD = StepResult(loss_sum=3.0, grad_norm=1.0, scale=1.0, is_skipped=False)
BAD = StepResult(loss_sum=math.nan, grad_norm=math.nan, scale=1.0, is_skipped=True)
STEEP = StepResult(loss_sum=3.0, grad_norm=math.inf, scale=1.0, is_skipped=True)
OVERFLOW = StepResult(loss_sum=3.0, grad_norm=math.inf, scale=4096.0, is_skipped=True)
LOST = StepResult(loss_sum=math.inf, grad_norm=math.nan, scale=4096.0, is_skipped=True)


def count(*results: StepResult) -> Counts:
    counts = Counts()
    for result in results:
        counts.add(result, num_tokens=10, num_supervised=0 if result is EMPTY_STEP else 5)
    return counts


def test_every_change_of_the_loss_scale_is_told_once() -> None:
    counts = Counts()
    changes = [counts.add_scale(scale) for scale in (4096.0, 4096.0, 2048.0, 1024.0, 1024.0, 2048.0)]
    assert changes == [
        None,
        None,
        ScaleChange(4096.0, 2048.0, "overflow"),
        ScaleChange(2048.0, 1024.0, "overflow"),
        None,
        ScaleChange(1024.0, 2048.0, "no overflow for fp16.scale_window steps"),
    ]
    assert (counts.num_scale_cuts, counts.num_scale_raises, counts.smallest_scale) == (2, 1, 1024.0)


def healthy(number: int, seed: int = 0) -> list[float]:
    """Losses that vary by a few percent around 2."""
    rng = random.Random(seed)
    return [2 + 0.06 * rng.gauss(0, 1) for _ in range(number)]


def spikes(losses: Iterable[float], counts: Counts | None = None) -> list[int]:
    """At which losses a spike begins."""
    counts = counts or Counts()
    return [number for number, loss in enumerate(losses) if counts.add_loss(loss, window=128, sigmas=6.0)]


def test_healthy_losses_are_no_spikes() -> None:
    assert spikes(healthy(2000)) == []
    falling = [2 + 9 * math.exp(-step / 30) for step in range(300)]  # the first steps from random weights
    assert spikes(falling) == []


@pytest.mark.parametrize("factor", [2, 10, 1000])
def test_spike_is_told_once_with_what_it_was_judged_by(factor: int) -> None:
    counts = Counts()
    spikes(healthy(200), counts)
    top = 2.0 * factor
    told = [counts.add_loss(loss, 128, 6.0) for loss in (top, top, top, 2.0)]
    assert isinstance(told[0], Spike)
    assert told[0].loss == top
    assert told[0].mean == pytest.approx(2, rel=0.01)
    assert told[0].limit == pytest.approx(3, rel=0.01)
    assert told[1:] == [None, None, None]
    assert (counts.num_spikes, counts.is_spiking) == (1, False)


@pytest.mark.parametrize("factor", [10, 1000])
def test_spike_does_not_hide_a_smaller_one_after_it(factor: int) -> None:
    losses = healthy(400)
    losses[200], losses[210], losses[300] = 2.0 * factor, 10.0, 5.0
    assert spikes(losses) == [200, 210, 300]


def test_losses_that_settle_higher_are_no_longer_a_spike() -> None:
    counts = Counts()
    assert spikes(healthy(200) + [loss + 3 for loss in healthy(200, seed=1)], counts) == [200]
    assert not counts.is_spiking


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_loss_that_is_no_number_never_enters_the_window(loss: float) -> None:
    counts = Counts()
    losses = healthy(200)
    losses[100] = loss
    assert spikes([*losses, 20.0], counts) == [200]
    assert all(map(math.isfinite, counts.recent_losses))


def test_window_must_be_filled_before_it_judges() -> None:
    assert spikes([*healthy(31), 2000.0]) == []
    assert spikes([*healthy(32), 2000.0]) == [32]
    assert loss_limit([], 128, 6.0) == loss_limit([1.0], 2, 6.0) == math.inf


def test_no_window_looks_for_no_spikes() -> None:
    counts = Counts()
    assert [counts.add_loss(loss, 0, 6.0) for loss in (*healthy(200), 2000.0)] == [None] * 201
    assert counts == Counts()


@pytest.mark.parametrize("cut", [10, 150, 201, 203])
def test_a_resumed_window_is_equal_to_the_bit(cut: int) -> None:
    losses = [*healthy(200), 20.0, 20.0, 2.0, 30.0, *healthy(50, seed=2)]
    whole, parted = Counts(), Counts()
    expected = spikes(losses, whole)
    before = spikes(losses[:cut], parted)
    saved = json.dumps(dataclasses.asdict(parted), allow_nan=False)
    resumed = Counts(**json.loads(saved))
    after = [cut + number for number in spikes(losses[cut:], resumed)]
    assert before + after == expected
    assert json.dumps(dataclasses.asdict(resumed)) == json.dumps(dataclasses.asdict(whole))


def test_window_never_grows_beyond_its_size() -> None:
    counts = Counts()
    spikes(healthy(500), counts)
    assert counts.recent_losses == healthy(500)[-128:]


def test_summary_hides_nothing_and_is_silent_about_a_smooth_run() -> None:
    assert summary(count(GOOD, GOOD)) == ""
    counts = count(GOOD, OVERFLOW, BAD, EMPTY_STEP)
    for scale in (4096.0, 2048.0, 1.0):
        counts.add_scale(scale)
    counts.num_spikes = 2
    assert summary(counts) == (
        "2 steps skipped as not finite (50.00%), counted as done; 1 step without a supervised token; "
        "loss scale 1: cut 2 times, raised 0 times, smallest 1; 2 loss spikes"
    )


def test_empty_step_neither_forgives_nor_counts_as_bad() -> None:
    assert count(BAD, EMPTY_STEP, BAD, EMPTY_STEP) == Counts(
        num_steps=4,
        num_tokens=40,
        num_supervised_tokens=10,
        num_skipped_steps=2,
        num_empty_steps=2,
        num_bad_in_a_row=2,
    )
