import pytest
import torch

from sft.config.engine import OptimizerConfig
from sft.model.neox.model import NeoX
from sft.model.neox.presets import PRESETS
from sft.train.engine.optimizer import parameter_groups, trained


@pytest.fixture
def model() -> NeoX:
    with torch.device("meta"):
        return NeoX(PRESETS["tiny"])


def names_by_decay(model: NeoX, config: OptimizerConfig) -> dict[float, list[str]]:
    """Names of the parameters under each value of weight decay; fails if one is in two groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    found = {group["weight_decay"]: [names.pop(id(parameter)) for parameter in group["params"]] for group in groups}
    assert len(found) == len(groups)
    return found


def test_all_parameters_decay_as_the_card_says(model: NeoX) -> None:
    assert names_by_decay(model, OptimizerConfig()) == {0.01: [name for name, _ in model.named_parameters()]}


def test_biases_and_norms_can_be_left_without_decay(model: NeoX) -> None:
    found = names_by_decay(model, OptimizerConfig(weight_decay=0.3, decay_biases_and_norms=False))
    assert found.keys() == {0.3, 0.0}
    without = [name for name, _ in model.named_parameters() if name.endswith("bias") or "norm" in name]
    assert found[0.0] == without
    assert len(found[0.3]) + len(without) == len(list(model.parameters()))
    assert {"embed_out.weight", "gpt_neox.embed_in.weight"} < set(found[0.3])


@pytest.mark.parametrize("decay_biases_and_norms", [True, False])
def test_frozen_parameters_are_in_no_group(model: NeoX, decay_biases_and_norms: bool) -> None:
    model.requires_grad_(False)
    model.embed_out.requires_grad_(True)
    config = OptimizerConfig(decay_biases_and_norms=decay_biases_and_norms)
    assert names_by_decay(model, config) == {0.01: ["embed_out.weight"]}
    assert list(trained(model)) == ["embed_out.weight"]
