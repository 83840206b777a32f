import pytest
import torch

from sft.config.fields import problems
from sft.model.neox.model import NeoX
from sft.model.neox.presets import PRESETS


@pytest.mark.parametrize(
    ("preset", "num_parameters"),
    [
        # The sizes of the published checkpoints, each parameter counted once.
        ("stablelm_3b", 3_637_321_728),
        ("stablelm_7b", 7_868_755_968),
        ("small_cpu", 28_980_736),
        ("tiny", 1_055_488),
    ],
)
def test_presets_have_exactly_these_parameter_counts(preset: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = NeoX(PRESETS[preset])
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_possible_shapes(preset: str) -> None:
    assert list(problems(PRESETS[preset])) == []


@pytest.mark.parametrize("preset", ["stablelm_3b", "stablelm_7b"])
def test_published_heads_are_128_wide_with_32_rotated_dimensions(preset: str) -> None:
    assert (PRESETS[preset].head_dim, PRESETS[preset].rotary_dims) == (128, 32)
