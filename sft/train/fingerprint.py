"""The identity of a run: the settings, shards and tokenizer that may not change on a resume."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sft.config.train import TrainConfig
from sft.data.shards import Shards
from sft.storage.json_file import unequal

Identity = dict[str, Any]
"""Setting or input by its dotted name; JSON values only."""


def identity(config: TrainConfig, shards: Shards) -> Identity:
    """Everything that determines the final weights of the run."""
    inputs = {
        "shards (content digest)": shards.manifest.content_digest,
        "tokenizer (sha256)": shards.manifest.tokenizer.sha256,
    }
    same_after_json: Identity = json.loads(json.dumps(dict(_fixed_settings(config, "")) | inputs))
    return same_after_json


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each entry that differs, with both values; `before` may use earlier names of settings."""
    before = {TrainConfig.FORMERLY.get(name, name): value for name, value in before.items()}
    return sorted(f"{name}: was {was!r}, now {is_now!r}" for name, was, is_now in unequal(before, now))


def _fixed_settings(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fixed_settings(value, f"{prefix}{field.name}.")
        elif field.metadata.get("resume_fixed"):
            yield f"{prefix}{field.name}", value
