"""Hugging Face model folders: config.json and safetensors, read and written one tensor at a time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sft.config.fields import problems
from sft.config.model import LoraConfig, ModelConfig
from sft.errors import ConfigError, NumericsError
from sft.model.base import LanguageModel
from sft.model.lora import PLAIN, is_adapter, merged
from sft.model.registry import FAMILIES, family_of, parameter_shapes
from sft.model.weight_files import INDEX, WEIGHTS, StoredWeights
from sft.storage.json_file import read_json, readable


def read_config(folder: Path) -> ModelConfig:
    """The model shape that a folder's config.json describes.

    Raises: ConfigError if it is missing or describes a model of an unsupported family.
    """
    path = folder / "config.json"
    with readable(path, ConfigError):
        try:
            raw = read_json(path)
        except FileNotFoundError:
            raise ConfigError("no such file: not a model folder", on=path, hint="name a Hugging Face folder") from None
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
    kind = raw.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        examples = " or ".join(family.example for family in FAMILIES.values())
        known = " or ".join(map(repr, FAMILIES))
        raise ConfigError(f"model_type={kind!r}: expected {known}", on=path, hint=f"start from {examples}")
    if misfits := list(family.config_problems(raw)):
        raise ConfigError("; ".join(misfits), on=path, hint=f"start from {family.example}")
    config = family.read_config(raw)
    if misfits := list(problems(config)):
        raise ConfigError("; ".join(misfits), on=path)
    return config


def stored_weights(folder: Path, config: ModelConfig, lora: LoraConfig = PLAIN) -> StoredWeights:
    """The parameters in a folder, adapters included, each read on access.

    Raises: DataError naming every missing, unexpected or misshapen tensor.
    """
    return StoredWeights(folder, parameter_shapes(config, lora), family_of(config).our_name)


def read_weights(folder: Path, config: ModelConfig, lora: LoraConfig = PLAIN) -> Mapping[str, Tensor]:
    """The weights of a plain model from a folder, each read on access; adapters are merged into them.

    Raises: DataError naming every missing, unexpected or misshapen tensor.
    """
    return merged(stored_weights(folder, config, lora), lora)


@torch.no_grad()
def load_weights(model: LanguageModel, folder: Path, lora: LoraConfig = PLAIN) -> None:
    """Copy a folder's weights into a plain model, into the formats and devices its parameters have.

    Raises: DataError naming every missing, unexpected or misshapen tensor, before any is copied.
    """
    stored = read_weights(folder, model.config, lora)
    for name, parameter in model.named_parameters():
        parameter.copy_(stored[name])


def write_folder(
    state: Mapping[str, Tensor], config: ModelConfig, folder: Path, dtype: torch.dtype, max_shard_bytes: int
) -> list[Path]:
    """Write config.json and the weights, cast to `dtype`; equal weights give equal bytes. Returns the files.

    `state` is read once per parameter and in order, so it may gather tensors on access. Adapters in it
    are written too.

    Raises: NumericsError if a weight is not finite in this format.
    """
    shapes = parameter_shapes(config) | {name: state[name].shape for name in state if is_adapter(name)}
    shards = _shards(shapes, dtype.itemsize, max_shard_bytes)
    names = [_shard_name(number, len(shards)) for number in range(len(shards))]
    for name, parameters in zip(names, shards, strict=True):
        save_file({key: _cast(key, state[key], dtype) for key in parameters}, folder / name, metadata={"format": "pt"})
        # The library makes files that only their owner can read; the folder's permissions decide instead.
        (folder / name).chmod(0o644)
    if len(shards) > 1:
        total_bytes = sum(shape.numel() for shape in shapes.values()) * dtype.itemsize
        weight_map = {key: name for name, parameters in zip(names, shards, strict=True) for key in parameters}
        _write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    written = [*(folder / name for name in names), write_config(config, folder, dtype)]
    return written + ([folder / INDEX] if len(shards) > 1 else [])


def write_config(config: ModelConfig, folder: Path, dtype: torch.dtype) -> Path:
    """Write config.json."""
    path = folder / "config.json"
    _write_json(path, family_of(config).config_json(config, dtype))
    return path


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = tensor.detach().to("cpu", dtype).contiguous()
    if not stored.isfinite().all():
        fits = tensor.isfinite().all()
        hint = (
            "its range is too small: take bf16 or fp32"
            if fits
            else "the weights are damaged: take an earlier checkpoint"
        )
        raise NumericsError(f"{name} has values that are not finite in {dtype}", hint=hint)
    return stored


def _shards(shapes: Mapping[str, torch.Size], itemsize: int, max_bytes: int) -> list[list[str]]:
    """Fill files in order; a tensor larger than a file gets a file of its own."""
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, shape in shapes.items():
        size = shape.numel() * itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _shard_name(number: int, total: int) -> str:
    return WEIGHTS if total == 1 else f"model-{number + 1:05d}-of-{total:05d}.safetensors"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
