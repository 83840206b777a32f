"""When steps that had to be skipped become a reason to give up, and what the run has counted so far."""

from collections.abc import Sequence
from dataclasses import dataclass

from sft.errors import NumericsError
from sft.train.engine.base import SMALLEST_SCALE, StepResult

NUM_PACKS_SHOWN = 8


@dataclass
class Counts:
    """What a run has done since its first step; part of every checkpoint."""

    num_steps: int = 0
    num_tokens: int = 0
    num_supervised_tokens: int = 0
    num_skipped_steps: int = 0
    """Steps whose loss or gradient was not finite; they left the weights alone."""
    num_empty_steps: int = 0
    """Steps whose packs held no supervised token."""
    num_bad_in_a_row: int = 0
    """Skipped steps at the smallest loss scale since the last good step."""

    def add(self, result: StepResult, num_tokens: int, num_supervised: int) -> None:
        """Count one more step.

        An fp16 overflow above the smallest loss scale is not bad: the scale halves and training goes on. Without
        a loss scale, or at its smallest value, nothing is left that could heal a non-finite step.
        """
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.num_supervised_tokens += num_supervised
        self.num_skipped_steps += result.is_skipped
        if not num_supervised:
            self.num_empty_steps += 1
        elif not result.is_skipped:
            self.num_bad_in_a_row = 0
        elif result.scale <= SMALLEST_SCALE:
            self.num_bad_in_a_row += 1


def require_numbers(counts: Counts, result: StepResult, packs: Sequence[int], max_bad_steps: int) -> None:
    """End the run if its last steps were all bad.

    Raises: NumericsError naming the packs of the last one.
    """
    if counts.num_bad_in_a_row < max_bad_steps:
        return
    shown = ", ".join(map(str, packs[:NUM_PACKS_SHOWN])) + (", …" if len(packs) > NUM_PACKS_SHOWN else "")
    raise NumericsError(
        f"loss {result.loss_sum} and gradient norm {result.grad_norm}: not finite in {counts.num_bad_in_a_row} steps "
        "in a row; the weights were left alone",
        on=f"step {counts.num_steps}, packs {shown}",
        hint="look at these packs with `sft inspect`, lower optimizer.lr, or train in bf16",
    )
