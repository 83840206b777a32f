"""A small schema with one field of every kind that the real ones have, and how its layers are refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from sft.config.loading import Layer, load
from sft.errors import ConfigError

TRAIN = {"shards": "s", "out": "o", "model": {"weights": "base"}}
"""What a TrainConfig cannot do without."""


@dataclass(frozen=True)
class Inner:
    """A nested schema."""

    rate: float = 0.5
    name: str = "inner"


@dataclass(frozen=True)
class Schema:
    """One field of every kind that the real schema has."""

    path: str
    count: int = 1
    rate: float = 1.0
    flag: bool = False
    limit: int | None = None
    label: str | None = None
    mode: Literal["fast", "slow"] = "fast"
    pair: tuple[float, float] = (1.0, 2.0)
    words: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    table: dict[str, Inner] = field(default_factory=dict)


def refusal(*layers: Mapping[str, Any] | Layer, schema: type = Schema) -> str:
    """The message with which the layers are refused."""
    named = [layer if isinstance(layer, Layer) else Layer(f"file{n}", layer) for n, layer in enumerate(layers)]
    with pytest.raises(ConfigError) as caught:
        load(schema, named)
    return str(caught.value)
