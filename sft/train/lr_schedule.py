"""The learning rate as a pure function of the step: nothing to save, and no off-by-one error after a resume."""

import math

from sft.config.engine import OptimizerConfig


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Warm-up is linear: step 0 has 1/warmup_steps of the peak, step warmup_steps - 1 the peak.
    From there the rate falls to min_lr_ratio of the peak, which the step after the last one would have, so that
    even with a ratio of 0 no step of the run has a rate of 0.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    peak_step = max(config.warmup_steps, 1) - 1
    done = (step - peak_step) / (num_steps - peak_step)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * _shape(config.schedule, done))


def _shape(schedule: str, done: float) -> float:
    """Falls from 1 to 0 while `done` goes from 0 to 1."""
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0 if schedule == "constant" else 1 - done
