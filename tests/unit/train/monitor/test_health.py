import dataclasses
from pathlib import Path

import pytest

from sft.train.engine.base import EMPTY_STEP, StepResult
from sft.train.monitor.counts import is_bad
from sft.train.monitor.health import numerics_error, reason_to_end, skip_reason
from tests.unit.train.monitor.test_counts import BAD, GOOD, LOST, OVERFLOW, STEEP, count


def end(*results: StepResult, max_loss: float | None = None) -> str | None:
    result = results[-1]
    return reason_to_end(count(*results), result, result.loss_sum / 5, max_bad_steps=3, max_loss=max_loss)


@pytest.mark.parametrize(
    ("result", "bad", "reason"),
    [
        (GOOD, False, None),
        (BAD, True, "loss is nan"),
        (STEEP, True, "gradient norm is inf"),
        (OVERFLOW, False, "gradient overflows at loss scale 4096"),
        (LOST, True, "loss is inf"),
    ],
)
def test_overflow_above_the_smallest_scale_is_normal_a_lost_loss_is_not(
    result: StepResult, bad: bool, reason: str | None
) -> None:
    assert is_bad(result) is bad
    if reason:
        assert skip_reason(result) == reason


@pytest.mark.parametrize(
    ("results", "ends"),
    [
        ([BAD, BAD], False),
        ([BAD, BAD, BAD], True),
        ([STEEP, BAD, STEEP], True),
        ([LOST, LOST, LOST], True),  # no smaller loss scale could bring the loss back
        ([OVERFLOW] * 12, False),
        ([BAD, BAD, GOOD, BAD, BAD], False),
        ([BAD, EMPTY_STEP, BAD, OVERFLOW, BAD], True),
        ([BAD, BAD, EMPTY_STEP], False),
    ],
)
def test_only_bad_steps_in_a_row_end_the_run(results: list[StepResult], ends: bool) -> None:
    assert (end(*results) is not None) is ends


def test_fp16_at_its_smallest_scale_is_named_as_the_reason() -> None:
    counts = count(STEEP, STEEP, STEEP)
    for scale in (2.0, 1.0):
        counts.add_scale(scale)
    reason = reason_to_end(counts, STEEP, 0.6, max_bad_steps=3, max_loss=None)
    assert reason is not None
    assert "not finite in 3 steps in a row at the smallest loss scale; the weights were left alone" in reason


def test_loss_above_its_limit_ends_the_run_at_once_but_one_that_is_no_number_does_not() -> None:
    high = dataclasses.replace(GOOD, loss_sum=50.5)
    assert end(high, max_loss=10.0) == "loss 10.1 is above health.max_loss=10"
    assert end(high, max_loss=10.2) is None
    assert end(LOST, max_loss=10.0) is None


def test_the_error_names_step_packs_rows_and_what_to_do() -> None:
    error = numerics_error(count(BAD, BAD), range(11, 31), "why", Path("runs/a"), Path("runs/a/bad.json"))
    assert error.exit_code == 70
    assert error.message().startswith("step 2, packs 11, 12, 13, 14, 15, 16, 17, 18, …: why")
    assert "rows are in runs/a/bad.json" in error.message()
    assert "`sft inspect runs/a --step 2`" in error.message()
    assert "rows are in" not in numerics_error(count(BAD), [1], "why", Path("a"), None).message()
