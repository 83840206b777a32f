"""The weights that a run starts from: those of a Hugging Face folder, or random ones in a named shape."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft.config.fields import problems
from sft.config.model import InitConfig, LoraConfig, ModelConfig
from sft.data.shards import TOKENIZER, Shards
from sft.errors import ConfigError, listed
from sft.model.hf_folder import read_config, stored_weights
from sft.model.lora import PLAIN, first_values, is_adapter
from sft.model.registry import build, parameter_shapes, presets
from sft.storage.json_file import read_json, readable
from sft.train.engine.base import Kind

SCRATCH = "scratch"


def starting_shape(init: InitConfig, shards: Shards) -> ModelConfig:
    """The shape of the model to start from.

    Raises: ConfigError listing every mismatch between weights, preset and shards.
    """
    shape = _scratch_shape(init) if init.weights == SCRATCH else read_config(Path(init.weights))
    misfits = [*problems(shape), *_misfits(shape, init, shards)]
    if misfits:
        raise ConfigError(
            f"model and shards do not fit:{listed(misfits)}",
            on=f"model.weights={init.weights}",
            hint="start from the base model of this tokenizer, or build the shards with this model's tokenizer",
        )
    return shape


class StartingWeights:
    """The first weights of a run, from which an engine reads its share."""

    def __init__(self, init: InitConfig, shape: ModelConfig, seed: int, lora: LoraConfig = PLAIN) -> None:
        self._seed, self._shapes = seed, parameter_shapes(shape, lora)
        self._stored = None if init.weights == SCRATCH else stored_weights(Path(init.weights), shape)
        self._fresh: dict[str, Tensor] = {}
        if self._stored is None:
            model = build(shape, "cpu")
            model.initialise(torch.Generator().manual_seed(seed))
            self._fresh = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def flat(self, kind: Kind, name: str, start: int, stop: int) -> Tensor:
        """The elements of a flattened parameter from start to stop; moments start at 0."""
        if kind != "weight":
            return torch.zeros(stop - start)
        if is_adapter(name):
            return first_values(name, self._shapes[name], self._seed).flatten()[start:stop]
        if self._stored is not None:
            return self._stored.flat(name, start, stop)
        return self._fresh[name].flatten()[start:stop]


def _scratch_shape(init: InitConfig) -> ModelConfig:
    shape = _preset(str(init.preset))
    return shape if init.vocab_size is None else dataclasses.replace(shape, vocab_size=init.vocab_size)


def _preset(name: str) -> ModelConfig:
    known = presets()
    if name not in known:
        raise ConfigError(f"model.preset={name}: no such shape", hint=f"known are {', '.join(known)}")
    return known[name]


def _misfits(shape: ModelConfig, init: InitConfig, shards: Shards) -> Iterator[str]:
    num_ids = shards.manifest.tokenizer.num_ids
    if shape.vocab_size < num_ids:
        yield f"the model has {shape.vocab_size} embedding rows, the shards' tokenizer {num_ids} ids"
    if shape.max_positions < shards.seq_len:
        yield f"the model has {shape.max_positions} positions, the shards are packed to {shards.seq_len} tokens"
    if init.weights == SCRATCH:
        return
    if init.preset is not None:
        preset = _preset(init.preset)
        for field in dataclasses.fields(shape):
            found, expected = getattr(shape, field.name), getattr(preset, field.name)
            if found != expected:
                yield f"{field.name} is {found}, in preset {init.preset} {expected}"
    own = Path(init.weights) / TOKENIZER
    if own.is_file() and _vocabulary(own) != _vocabulary(shards.tokenizer_path):
        yield f"{own} has another vocabulary than the tokenizer of the shards"


def _vocabulary(path: Path) -> Any:
    """The tokens of a tokenizer.json without the added ones, which a build may extend."""
    with readable(path, ConfigError, what="not readable as a tokenizer"):
        return read_json(path)["model"]["vocab"]
