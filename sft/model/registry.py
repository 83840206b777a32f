"""The model families: how each is built, read from and written to Hugging Face folders, and its named shapes.

A new family is a folder beside `neox/` and one entry here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sft.config.model import ActivationCheckpointing, LoraConfig, ModelConfig
from sft.model.base import LanguageModel
from sft.model.lora import PLAIN, add_adapters
from sft.model.neox import hf_config as neox_hf
from sft.model.neox.model import NeoX
from sft.model.neox.presets import PRESETS as NEOX_PRESETS


@dataclass(frozen=True)
class Family:
    """One model family."""

    model_type: str
    """Its name in config.json."""
    title: str
    """Its name in prose."""
    example: str
    """A model of this family to start from."""
    config: type[ModelConfig]
    model: Callable[..., LanguageModel]
    presets: Mapping[str, ModelConfig]
    config_problems: Callable[[dict[str, Any]], Iterator[str]]
    """The settings of a config.json that this family's model does not support."""
    read_config: Callable[[dict[str, Any]], ModelConfig]
    """The shape that a config.json without problems describes."""
    config_json: Callable[[ModelConfig, torch.dtype], dict[str, Any]]
    """The config.json of a model of this shape."""
    our_name: Callable[[str], str | None]
    """The parameter's name for a stored tensor's name, None if it is not a parameter."""


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type=neox_hf.MODEL_TYPE,
            title="GPT-NeoX",
            example="a GPT-NeoX model such as StableLM-Base-Alpha",
            config=ModelConfig,
            model=NeoX,
            presets=NEOX_PRESETS,
            config_problems=neox_hf.config_problems,
            read_config=neox_hf.read_config,
            config_json=neox_hf.config_json,
            our_name=neox_hf.our_name,
        ),
    )
}


def family_of(config: ModelConfig) -> Family:
    """The family that a shape belongs to."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)


def presets() -> dict[str, ModelConfig]:
    """The shapes that have a name, of all families."""
    return {name: shape for family in FAMILIES.values() for name, shape in family.presets.items()}


def meta_model(
    config: ModelConfig, lora: LoraConfig = PLAIN, activation_checkpointing: ActivationCheckpointing = "none"
) -> LanguageModel:
    """A model with its adapters on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        model = family_of(config).model(config, activation_checkpointing=activation_checkpointing)
        add_adapters(model, lora)
    return model


def build(config: ModelConfig, device: torch.device | str) -> LanguageModel:
    """A model whose fp32 weights are reserved but not filled: initialise or load them next."""
    return meta_model(config).to_empty(device=device)


def parameter_shapes(config: ModelConfig, lora: LoraConfig = PLAIN) -> dict[str, torch.Size]:
    """Name and shape of every parameter, those of adapters included, in the order in which they are written."""
    return {name: parameter.shape for name, parameter in meta_model(config, lora).named_parameters()}
