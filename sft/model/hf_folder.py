"""Hugging Face GPT-NeoX folders: config.json and safetensors, read and written one tensor at a time.

The head is written under its name in the published checkpoints, rotary settings under their old names and as
`rope_parameters`, so that old and new readers understand them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sft.config.fields import problems
from sft.config.model import LoraConfig, ModelConfig
from sft.errors import ConfigError, NumericsError
from sft.model.lora import PLAIN, add_adapters, is_adapter, merged
from sft.model.neox.model import NeoX
from sft.model.stored_weights import INDEX, WEIGHTS, StoredWeights

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# What this model is; a config that says otherwise describes another one. Absent keys have these values.
_FIXED = {
    "hidden_act": "gelu",
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "rope_scaling": None,
    "quantization_config": None,
}


def read_config(folder: Path) -> ModelConfig:
    """The model shape that a folder's config.json describes.

    Raises: ConfigError if it is missing or describes anything but the GPT-NeoX of `neox.py`.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        raise ConfigError("no such file: not a model folder", on=path, hint="name a Hugging Face folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"not readable: {error}", on=path) from error
    if misfits := list(_config_problems(raw)):
        raise ConfigError("; ".join(misfits), on=path, hint="start from a GPT-NeoX model such as StableLM-Base-Alpha")
    config = _shape(raw)
    if misfits := list(problems(config)):
        raise ConfigError("; ".join(misfits), on=path)
    return config


def _config_problems(raw: dict[str, Any]) -> Iterator[str]:
    if raw.get("model_type") != "gpt_neox":
        yield f"model_type={raw.get('model_type')!r}: expected 'gpt_neox'"
        return
    for key, expected in _FIXED.items():
        if raw.get(key, expected) != expected:
            yield f"{key}={raw[key]!r}: expected {expected!r}"
    rope_type = (raw.get("rope_parameters") or {}).get("rope_type", "default")
    if rope_type != "default":
        yield f"rope_parameters.rope_type={rope_type!r}: expected 'default'"
    for key in _SIZES:
        if not isinstance(raw.get(key), int):
            yield f"{key}={raw.get(key)!r}: expected a number"


def _shape(raw: dict[str, Any]) -> ModelConfig:
    rope = raw.get("rope_parameters") or {}
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        intermediate_size=raw["intermediate_size"],
        max_positions=raw.get("max_position_embeddings", 2048),
        rotary_pct=rope.get("partial_rotary_factor", raw.get("rotary_pct", 0.25)),
        rotary_base=float(rope.get("rope_theta", raw.get("rotary_emb_base", 10000))),
        layer_norm_eps=raw.get("layer_norm_eps", 1e-5),
        initializer_range=raw.get("initializer_range", 0.02),
    )


def config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What config.json says about a model of this shape."""
    dtype_name = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dtype": dtype_name,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_positions,
        "model_type": "gpt_neox",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "rope_parameters": {
            "partial_rotary_factor": config.rotary_pct,
            "rope_theta": config.rotary_base,
            "rope_type": "default",
        },
        "rotary_emb_base": config.rotary_base,
        "rotary_pct": config.rotary_pct,
        "tie_word_embeddings": False,
        "torch_dtype": dtype_name,
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": config.vocab_size,
    }


def parameter_shapes(config: ModelConfig, lora: LoraConfig = PLAIN) -> dict[str, torch.Size]:
    """Name and shape of every parameter, those of adapters included, in the order in which they are written."""
    with torch.device("meta"):
        model = NeoX(config)
        add_adapters(model, lora)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def read_weights(folder: Path, config: ModelConfig, lora: LoraConfig = PLAIN) -> Mapping[str, Tensor]:
    """The weights of a plain model from a folder, each read when it is asked for; adapters are merged into them.

    Raises: DataError naming every missing, unexpected or misshapen tensor.
    """
    return merged(StoredWeights(folder, parameter_shapes(config, lora)), lora)


@torch.no_grad()
def load_weights(model: NeoX, folder: Path, lora: LoraConfig = PLAIN) -> None:
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

    `state` is asked for each parameter once and in order, so it may gather tensors as they are needed. Adapters in it
    are written too.

    Raises: NumericsError if a weight is not finite in this format.
    """
    shapes = parameter_shapes(config) | {name: state[name].shape for name in state if is_adapter(name)}
    shards = _shards(shapes, dtype.itemsize, max_shard_bytes)
    names = [_shard_name(number, len(shards)) for number in range(len(shards))]
    for name, parameters in zip(names, shards, strict=True):
        save_file({key: _cast(key, state[key], dtype) for key in parameters}, folder / name, metadata={"format": "pt"})
        # The library makes files that only their owner can read; who else may is up to the folder.
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
    _write_json(path, config_json(config, dtype))
    return path


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = tensor.detach().to("cpu", dtype).contiguous()
    if not stored.isfinite().all():
        fits = tensor.isfinite().all()
        hint = (
            "its range is too small: take bf16 or fp32"
            if fits
            else "the weights are spoilt: take an earlier checkpoint"
        )
        raise NumericsError(f"{name} has values that are not finite in {dtype}", hint=hint)
    return stored


def _shards(shapes: Mapping[str, torch.Size], itemsize: int, max_bytes: int) -> list[list[str]]:
    """Fill files in order; a tensor larger than a file gets its own."""
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
