"""GPT-NeoX in Hugging Face folders: the keys of config.json and the names of tensors.

Rotary settings are written under their old names and as `rope_parameters`, the head under its name in the published
checkpoints, so that old and new readers understand them.
"""

from collections.abc import Iterator
from typing import Any

import torch

from sft.config.model import ModelConfig

MODEL_TYPE = "gpt_neox"
HEAD, NEWER_HEAD = "embed_out.weight", "lm_head.weight"
# Tables that older writers stored although they follow from the config.
_BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# The fixed properties of this model; a config with other values describes another model. Absent keys have these values.
_FIXED = {
    "hidden_act": "gelu",
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "rope_scaling": None,
    "quantization_config": None,
}


def config_problems(raw: dict[str, Any]) -> Iterator[str]:
    """The settings of a config.json that this model does not support."""
    for key, expected in _FIXED.items():
        if raw.get(key, expected) != expected:
            yield f"{key}={raw[key]!r}: expected {expected!r}"
    rope_type = (raw.get("rope_parameters") or {}).get("rope_type", "default")
    if rope_type != "default":
        yield f"rope_parameters.rope_type={rope_type!r}: expected 'default'"
    for key in _SIZES:
        if not isinstance(raw.get(key), int):
            yield f"{key}={raw.get(key)!r}: expected a number"


def read_config(raw: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json without problems describes."""
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
    """The config.json of a model of this shape."""
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
        "model_type": MODEL_TYPE,
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


def our_name(stored: str) -> str | None:
    """The parameter's name for a stored tensor's name: the head has two names, and tables are not parameters."""
    return None if stored.endswith(_BUFFERS) else HEAD if stored == NEWER_HEAD else stored
