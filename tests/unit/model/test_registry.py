"""The registry builds every family's models from shapes alone."""

import math

import pytest
import torch

from sft.config.model import LoraConfig, ModelConfig
from sft.model.lora import is_adapter
from sft.model.registry import FAMILIES, build, family_of, meta_model, parameter_shapes, presets

PRESETS = presets()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_belongs_to_a_family_that_writes_what_it_reads(preset: str) -> None:
    shape = PRESETS[preset]
    family = family_of(shape)
    raw = family.config_json(shape, torch.float32)
    assert FAMILIES[raw["model_type"]] is family
    assert list(family.config_problems(raw)) == []
    assert family.read_config(raw) == shape


def test_a_model_on_the_meta_device_takes_no_memory() -> None:
    model = meta_model(PRESETS["stablelm_7b"], activation_checkpointing="full")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert (model.activation_checkpointing, round(model.num_parameters / 1e9, 1)) == ("full", 7.9)


def test_a_built_model_is_plain_and_on_its_device(config: ModelConfig) -> None:
    model = build(config, "cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == parameter_shapes(config)


def test_shapes_hold_those_of_adapters_too(config: ModelConfig) -> None:
    plain, adapted = parameter_shapes(config), parameter_shapes(config, LoraConfig(rank=2))
    assert {name for name in adapted if not is_adapter(name)} == plain.keys()
    assert sum(map(is_adapter, adapted)) == 2 * 4 * config.num_layers


def test_layers_that_the_family_names_exist(config: ModelConfig) -> None:
    model = meta_model(config)
    names = dict(model.named_modules())
    assert all(isinstance(names[layer], torch.nn.Linear) for layer in model.gate_layers().values())
    assert all(isinstance(getattr(owner, name), torch.nn.Linear) for owner, name in model.adapter_layers())
    assert all(callable(getattr(owner, name)) for owner, name in model.compiled_parts())
    assert all(type(part) is torch.nn.Linear for module in model.linear_modules() for part in module.children())


def test_operations_are_six_per_weight_of_a_product_and_twelve_per_pair_layer_and_dimension(
    config: ModelConfig,
) -> None:
    model = meta_model(config)
    matrices = [math.prod(shape) for name, shape in parameter_shapes(config).items() if len(shape) == 2]
    embedding = config.vocab_size * config.hidden_size
    assert model.flops_per_token == 6 * (sum(matrices) - embedding)
    assert model.flops_per_pair == 12 * config.num_layers * config.hidden_size
