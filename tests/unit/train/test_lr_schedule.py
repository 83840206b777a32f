import itertools

import pytest
import torch
from torch.optim import lr_scheduler

from sft.config.engine import OptimizerConfig
from sft.train.lr_schedule import learning_rate


def rates(num_steps: int, **settings: object) -> list[float]:
    config = OptimizerConfig(lr=1.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(step, num_steps, config) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "linear", "warmup_steps": 2}, [1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "cosine", "warmup_steps": 4}, [1 / 4, 2 / 4, 3 / 4, 1, 0.853553, 0.5, 0.146447]),
        ({"schedule": "constant", "warmup_steps": 4}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1]),
        ({"schedule": "linear", "warmup_steps": 0}, [1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),
        ({"schedule": "linear", "warmup_steps": 3, "min_lr_ratio": 0.5}, [1 / 3, 2 / 3, 1, 0.9, 0.8, 0.7, 0.6]),
        ({"schedule": "cosine", "warmup_steps": 10}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ({"schedule": "constant", "warmup_steps": 10}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ({"schedule": "constant", "warmup_steps": 0}, [1, 1, 1]),
        ({"schedule": "cosine", "warmup_steps": 2, "min_lr_ratio": 0.1}, [1 / 2, 1, 0.868198, 0.55, 0.231802]),
        ({"schedule": "linear", "warmup_steps": 1}, [1]),
        ({"schedule": "linear", "warmup_steps": 5}, [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1]),
    ],
)
def test_golden_schedule(settings: dict[str, object], expected: list[float]) -> None:
    assert rates(len(expected), **settings) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 50])
def test_no_step_is_spent_on_a_rate_of_zero(schedule: str, warmup_steps: int) -> None:
    assert min(rates(60, schedule=schedule, warmup_steps=warmup_steps)) > 0
    assert max(rates(60, schedule=schedule, warmup_steps=warmup_steps)) == 1


def of_torch(num_steps: int, config: OptimizerConfig) -> list[float]:
    """The same schedule put together from PyTorch's own schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    rising, falling = max(config.warmup_steps, 1) - 1, num_steps - max(config.warmup_steps, 1) + 1
    ratio = config.min_lr_ratio
    after: lr_scheduler.LRScheduler
    if config.schedule == "cosine":
        after = lr_scheduler.CosineAnnealingLR(optimizer, falling, eta_min=ratio * config.lr)
    else:
        end = 1.0 if config.schedule == "constant" else ratio
        after = lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=end, total_iters=falling)
    if rising:
        before = lr_scheduler.LinearLR(optimizer, start_factor=1 / config.warmup_steps, total_iters=rising)
        after = lr_scheduler.SequentialLR(optimizer, [before, after], milestones=[rising])
    taken = []
    for _ in range(num_steps):
        taken.append(after.get_last_lr()[0])
        optimizer.step()
        after.step()
    return taken


@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 50, 100])
@pytest.mark.parametrize(
    ("schedule", "min_lr_ratio"),
    [("cosine", 0.0), ("cosine", 0.1), ("linear", 0.0), ("linear", 0.2), ("constant", 0.0)],
)
def test_schedule_is_the_one_that_pytorch_computes(schedule: str, min_lr_ratio: float, warmup_steps: int) -> None:
    config = OptimizerConfig(
        lr=2e-5,
        schedule=schedule,  # type: ignore[arg-type]
        min_lr_ratio=min_lr_ratio,
        warmup_steps=warmup_steps,
    )
    ours = [learning_rate(step, 130, config) for step in range(130)]
    assert ours == pytest.approx(of_torch(130, config), rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rate_only_rises_to_its_peak_and_only_falls_from_there(schedule: str) -> None:
    found = rates(200, schedule=schedule, warmup_steps=50)
    assert all(a < b for a, b in itertools.pairwise(found[:50]))
    assert all(a > b for a, b in itertools.pairwise(found[49:]))
    assert found[49] == 1
