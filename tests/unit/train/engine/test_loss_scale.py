"""The dynamic fp16 loss scale."""

import pytest

from sft.config.engine import Fp16Config
from sft.train.engine.base import SMALLEST_SCALE
from sft.train.engine.loss_scale import LossScale

CONFIG = Fp16Config(initial_scale_power=3, scale_window=2)
SCALES = [
    ("an overflow halves", [False], [4.0]),
    ("a window without one doubles", [True, True, True, True], [8.0, 16.0, 16.0, 32.0]),
    ("an overflow begins the window anew", [True, False, True, True], [8.0, 4.0, 4.0, 8.0]),
    ("it never falls below the smallest", [False] * 5, [4.0, 2.0, 1.0, SMALLEST_SCALE, SMALLEST_SCALE]),
]


@pytest.mark.parametrize(("steps", "expected"), [case[1:] for case in SCALES], ids=[case[0] for case in SCALES])
def test_the_scale_follows_the_overflows(steps: list[bool], expected: list[float]) -> None:
    scale, found = LossScale(CONFIG), []
    for is_finite in steps:
        scale.update(is_finite=is_finite)
        found.append(scale.value)
    assert found == expected


def test_other_precisions_have_no_scale() -> None:
    scale = LossScale(None)
    for is_finite in (True, True, False):
        scale.update(is_finite=is_finite)
    assert scale.value == SMALLEST_SCALE


def test_a_restored_scale_goes_on_where_the_other_was() -> None:
    one, other = LossScale(CONFIG), LossScale(CONFIG)
    one.update(is_finite=True)
    other.restore(one.state())
    for scale in (one, other):
        scale.update(is_finite=True)
    assert one.state() == other.state() == {"value": 16.0, "num_good": 0}
