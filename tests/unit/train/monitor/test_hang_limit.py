from dataclasses import replace

import pytest

from sft.config.train import HangConfig
from sft.train.monitor.hang_limit import STEP, HangLimit

LIMITS = HangConfig(timeout_s=120.0, first_step_timeout_s=1800.0)


@pytest.fixture
def limit() -> HangLimit:
    return HangLimit(LIMITS)


def take_steps(limit: HangLimit, *lengths_s: float, from_s: float = 0.0) -> float:
    """Beats of so many whole steps and the first one of the next; returns its time."""
    now_s, first = from_s, limit.step + 1
    for number, length_s in enumerate(lengths_s):
        limit.beat(STEP, first + number, now_s)
        now_s += length_s
    limit.beat(STEP, first + len(lengths_s), now_s)
    return now_s


def test_everything_before_the_end_of_the_first_step_may_take_long(limit: HangLimit) -> None:
    limits_s = [limit.limit_s]
    limit.beat("load", 0, 1.0)
    limits_s.append(limit.limit_s)
    limit.beat(STEP, 1, 2.0)
    limits_s.append(limit.limit_s)
    assert limits_s == [1800.0] * 3
    limit.beat(STEP, 2, 9.0)
    assert limit.limit_s == 120.0


def test_slow_steps_raise_the_limit_to_five_medians(limit: HangLimit) -> None:
    take_steps(limit, 40.0, 30.0, 1.0)
    assert limit.limit_s == 150.0


def test_old_steps_are_forgotten(limit: HangLimit) -> None:
    now_s = take_steps(limit, *[40.0] * 60)
    take_steps(limit, *[1.0] * 26, from_s=now_s)
    assert limit.limit_s == 120.0


def test_measuring_and_saving_may_take_long_and_their_time_is_no_steps(limit: HangLimit) -> None:
    now_s = take_steps(limit, 1.0, 1.0)
    limit.beat("save", 2, now_s + 1)
    assert limit.limit_s == 1800.0
    limit.beat(STEP, 4, now_s + 1500)
    assert limit.limit_s == 120.0


def test_every_beat_is_a_sign_of_life_and_a_step_lasts_until_another_begins(limit: HangLimit) -> None:
    for number in range(5):
        limit.beat(STEP, 1, 10.0 * number)
    assert limit.silent_s(42.0) == 2.0
    limit.beat(STEP, 2, 50.0)
    assert limit.limit_s == 250.0


@pytest.mark.parametrize(("field", "phase"), [("timeout_s", STEP), ("first_step_timeout_s", "save")])
def test_zero_switches_a_limit_off_and_not_the_other(field: str, phase: str) -> None:
    limit = HangLimit(replace(LIMITS, **{field: 0.0}))
    take_steps(limit, 1.0)
    limits_s = {STEP: limit.limit_s}
    limit.beat("save", 1, 2.0)
    limits_s["save"] = limit.limit_s
    other = "save" if phase == STEP else STEP
    assert limits_s[phase] == float("inf")
    assert limits_s[other] in (120.0, 1800.0)
