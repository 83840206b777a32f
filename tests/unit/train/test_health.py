import math

import pytest

from sft.errors import NumericsError
from sft.train.engine.base import EMPTY_STEP, StepResult
from sft.train.health import Counts, require_numbers

GOOD = StepResult(loss_sum=3.0, grad_norm=1.0, scale=1.0, is_skipped=False)
BAD = StepResult(loss_sum=math.nan, grad_norm=math.nan, scale=1.0, is_skipped=True)
OVERFLOW = StepResult(loss_sum=3.0, grad_norm=math.inf, scale=4096.0, is_skipped=True)


def run(*results: StepResult) -> Counts:
    counts = Counts()
    for result in results:
        counts.add(result, num_tokens=10, num_supervised=0 if result is EMPTY_STEP else 5)
        require_numbers(counts, result, packs=range(11, 31), max_bad_steps=3)
    return counts


def test_bad_steps_in_a_row_end_the_run_and_name_the_packs() -> None:
    with pytest.raises(NumericsError, match=r"step 4, packs 11, 12, 13, 14, 15, 16, 17, 18, …: .* 3 steps in a row"):
        run(GOOD, BAD, BAD, BAD)


def test_good_step_forgives_the_bad_ones_before() -> None:
    assert run(BAD, BAD, GOOD, BAD, BAD).num_skipped_steps == 4


def test_overflow_above_the_smallest_loss_scale_is_normal() -> None:
    assert run(*[OVERFLOW] * 12).num_skipped_steps == 12


def test_empty_step_neither_forgives_nor_counts_as_bad() -> None:
    assert run(BAD, EMPTY_STEP, BAD, EMPTY_STEP) == Counts(
        num_steps=4,
        num_tokens=40,
        num_supervised_tokens=10,
        num_skipped_steps=2,
        num_empty_steps=2,
        num_bad_in_a_row=2,
    )
