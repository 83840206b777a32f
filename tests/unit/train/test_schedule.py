import pytest

from sft.config import OptimizerConfig
from sft.train.schedule import learning_rate


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
    ],
)
def test_golden_schedule(settings: dict[str, object], expected: list[float]) -> None:
    assert rates(len(expected), **settings) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 50])
def test_no_step_is_spent_on_a_rate_of_zero(schedule: str, warmup_steps: int) -> None:
    assert min(rates(60, schedule=schedule, warmup_steps=warmup_steps)) > 0
    assert max(rates(60, schedule=schedule, warmup_steps=warmup_steps)) == 1
