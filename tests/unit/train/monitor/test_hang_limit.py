import pytest

from sft.train.monitor.hang_limit import STEP, Patience
from tests.conftest import MakeConfig
from tests.support.configs import changed


@pytest.fixture
def patience(tiny_config: MakeConfig) -> Patience:
    return Patience(tiny_config(hang__timeout_s=120.0, hang__first_step_timeout_s=1800.0))


def take_steps(patience: Patience, *lengths_s: float, from_s: float = 0.0) -> float:
    """Beats of so many whole steps and the first one of the next; returns its time."""
    now_s, first = from_s, patience.step + 1
    for number, length_s in enumerate(lengths_s):
        patience.beat(STEP, first + number, now_s)
        now_s += length_s
    patience.beat(STEP, first + len(lengths_s), now_s)
    return now_s


def test_everything_before_the_end_of_the_first_step_may_take_long(patience: Patience) -> None:
    limits_s = [patience.limit_s]
    patience.beat("load", 0, 1.0)
    limits_s.append(patience.limit_s)
    patience.beat(STEP, 1, 2.0)
    limits_s.append(patience.limit_s)
    assert limits_s == [1800.0] * 3
    patience.beat(STEP, 2, 9.0)
    assert patience.limit_s == 120.0


def test_slow_steps_raise_the_limit_to_five_medians(patience: Patience) -> None:
    take_steps(patience, 40.0, 30.0, 1.0)
    assert patience.limit_s == 150.0


def test_old_steps_are_forgotten(patience: Patience) -> None:
    now_s = take_steps(patience, *[40.0] * 60)
    take_steps(patience, *[1.0] * 26, from_s=now_s)
    assert patience.limit_s == 120.0


def test_measuring_and_saving_may_take_long_and_their_time_is_no_steps(patience: Patience) -> None:
    now_s = take_steps(patience, 1.0, 1.0)
    patience.beat("save", 2, now_s + 1)
    assert patience.limit_s == 1800.0
    patience.beat(STEP, 4, now_s + 1500)
    assert patience.limit_s == 120.0


def test_every_beat_is_a_sign_of_life_and_a_step_lasts_until_another_begins(patience: Patience) -> None:
    for number in range(5):
        patience.beat(STEP, 1, 10.0 * number)
    assert patience.silent_s(42.0) == 2.0
    patience.beat(STEP, 2, 50.0)
    assert patience.limit_s == 250.0


@pytest.mark.parametrize(("field", "phase"), [("hang__timeout_s", STEP), ("hang__first_step_timeout_s", "save")])
def test_zero_switches_a_limit_off_and_not_the_other(field: str, phase: str, tiny_config: MakeConfig) -> None:
    config = changed(tiny_config(hang__timeout_s=120.0, hang__first_step_timeout_s=1800.0), **{field: 0.0})
    patience = Patience(config)
    take_steps(patience, 1.0)
    limits_s = {STEP: patience.limit_s}
    patience.beat("save", 1, 2.0)
    limits_s["save"] = patience.limit_s
    other = "save" if phase == STEP else STEP
    assert limits_s[phase] == float("inf")
    assert limits_s[other] in (120.0, 1800.0)
