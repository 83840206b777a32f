"""A model with adapters starts as its base model, trains nothing else, and becomes a plain model again.

V = vocabulary rows, T = tokens.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sft.config.model import ActivationCheckpointing, LoraConfig, LoraTarget, ModelConfig
from sft.model.attention import Documents
from sft.model.lora import (
    add_adapters,
    first_values,
    is_adapter,
    merged,
)
from sft.model.loss import supervised_loss_sum
from sft.model.neox.model import NeoX
from sft.model.registry import parameter_shapes

LENGTHS = (1, 17, 40, 2)
LORA = LoraConfig(rank=4, alpha=6.0)


@torch.no_grad()
def no_gradients(model: NeoX, input_ids_T: Tensor) -> Tensor:
    return logits(model, input_ids_T)


def logits(model: NeoX, input_ids_T: Tensor) -> Tensor:
    return model.logits(model(input_ids_T, Documents.of(LENGTHS)))


def plain(model: NeoX, config: ModelConfig, lora: LoraConfig) -> NeoX:
    """The model without adapters that the weights merge into."""
    result = NeoX(config)
    result.load_state_dict(dict(merged(model.state_dict(), lora)))
    return result


@torch.no_grad()
def begin(model: NeoX) -> None:
    """The first values of the adapters."""
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.copy_(first_values(name, parameter.shape, 3))


def fill(model: NeoX) -> None:
    """Values for the adapters as training might leave them."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(0.0, 0.2, generator=generator)


@pytest.fixture
def adapted(model: NeoX) -> NeoX:
    """The model of this folder's tests with adapters that do something."""
    add_adapters(model, LORA)
    fill(model)
    return model


def test_fresh_adapters_change_no_bit(model: NeoX, input_ids_T: Tensor) -> None:
    expected_TV = logits(model, input_ids_T)
    add_adapters(model, LORA)
    begin(model)
    assert torch.equal(logits(model, input_ids_T), expected_TV)


def test_base_parameters_keep_their_names_and_values(model: NeoX) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_adapters(model, LORA)
    begin(model)
    after = model.state_dict()
    added = sorted(after.keys() - before.keys())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert added[:2] == ["gpt_neox.layers.0.attention.dense.lora_a", "gpt_neox.layers.0.attention.dense.lora_b"]
    assert len(added) == 3 * 4 * 2


def test_without_rank_nothing_is_added_or_frozen(model: NeoX) -> None:
    before = dict(model.named_parameters())
    add_adapters(model, LoraConfig())
    assert dict(model.named_parameters()) == before
    assert all(parameter.requires_grad for parameter in before.values())
    assert merged(before, LoraConfig()) is before


@pytest.mark.parametrize("target", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"])
def test_the_layers_that_are_named_get_adapters(model: NeoX, target: LoraTarget) -> None:
    add_adapters(model, replace(LORA, targets=(target,)))
    found = {name.split(".")[-2] for name in model.state_dict() if is_adapter(name)}
    assert found == {target}


def test_merged_weights_compute_what_the_adapters_do(adapted: NeoX, config: ModelConfig, input_ids_T: Tensor) -> None:
    found_TV, base = no_gradients(plain(adapted, config, LORA), input_ids_T), NeoX(config)
    expected_TV = no_gradients(adapted, input_ids_T)
    torch.testing.assert_close(found_TV, expected_TV, rtol=1e-6, atol=1e-6 * float(expected_TV.abs().max()))
    base.load_state_dict({name: value for name, value in adapted.state_dict().items() if not is_adapter(name)})
    assert float((no_gradients(base, input_ids_T) - expected_TV).abs().max()) > 0.1


def test_merging_is_one_rounded_product_and_sum_in_fp32(adapted: NeoX) -> None:
    stored = adapted.state_dict()
    layer = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    exact = stored[f"{layer}.lora_b"].double() @ stored[f"{layer}.lora_a"].double() * 1.5
    expected = stored[f"{layer}.weight"].double() + exact
    found = merged(stored, LORA)[f"{layer}.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stored[f"{layer}.bias"], merged(stored, LORA)[f"{layer}.bias"], rtol=0, atol=0)


def test_merged_weights_have_the_plain_model_s_names(adapted: NeoX, config: ModelConfig) -> None:
    found = merged(adapted.state_dict(), LORA)
    assert list(found) == list(parameter_shapes(config))
    assert len(found) == len(list(found))


@pytest.mark.parametrize("policy", ["none", "cheap", "full"])
def test_only_adapters_get_gradients_and_all_of_them(
    adapted: NeoX, input_ids_T: Tensor, policy: ActivationCheckpointing
) -> None:
    adapted.activation_checkpointing = policy
    hidden_TD = adapted(input_ids_T, Documents.of(LENGTHS))
    supervised_loss_sum(hidden_TD, adapted.head_weight, input_ids_T).backward()
    with_gradient = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name in adapted.state_dict() if is_adapter(name)}
    assert all(bool(parameter.grad.any()) for parameter in adapted.parameters() if parameter.grad is not None)


def test_adapters_get_the_gradient_of_the_merged_weights(
    adapted: NeoX, config: ModelConfig, input_ids_T: Tensor
) -> None:
    """dL/dB = dL/dW Aᵀ s and dL/dA = s Bᵀ dL/dW, with the gradient of the plain model's weight."""
    reference = plain(adapted, config, LORA)
    for each in (adapted, reference):
        logits(each, input_ids_T).square().sum().backward()
    layer = "gpt_neox.layers.0.attention.query_key_value"
    found, grad = adapted.get_submodule(layer), reference.get_submodule(layer).weight.grad
    for parameter, expected in (
        (found.lora_b, grad @ found.lora_a.T * 1.5),
        (found.lora_a, 1.5 * found.lora_b.T @ grad),
    ):
        expected = expected.detach()
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_first_values_depend_on_seed_and_name_alone() -> None:
    shape = torch.Size((4, 4096))
    names = [f"layer{number}.lora_a" for number in range(2)]
    values = [first_values(name, shape, seed) for name in names for seed in (0, 1)]
    assert not any(torch.equal(one, two) for n, one in enumerate(values) for two in values[:n])
    assert torch.equal(values[0], first_values(names[0], shape, 0))
    assert float(values[0].std()) == pytest.approx(4096**-0.5, rel=0.02)
    assert not first_values("layer0.lora_b", shape, 0).any()
