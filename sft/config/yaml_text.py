"""Configs as text: YAML files are read as layers, and a resolved config is shown and written as YAML."""

import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft.config.loading import Layer, Resolved, Values
from sft.errors import ConfigError

INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
"""Where OmegaConf would interpolate: `${` without a backslash before it."""


def read_yaml(path: Path) -> Layer:
    """The values of a YAML file as a layer named after the file."""
    if not path.is_file():
        raise ConfigError("no such config file", on=path, hint="give the path of a YAML file")
    try:
        content = OmegaConf.load(path)
        if filled_in := sorted(_interpolations(OmegaConf.to_container(content, resolve=False))):
            raise ConfigError(
                f"not readable as YAML: {', '.join(filled_in)} would be filled in, which no setting is",
                on=path,
                hint=r"write the value itself; a text that holds ${ is written as \${",
            )
        values = OmegaConf.to_container(content, resolve=True)  # removes the backslashes
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not readable as YAML: {error}", on=path) from error
    except OSError:  # OmegaConf raises it for a file that holds a single number
        values = None
    if not isinstance(values, dict):
        raise ConfigError("expected a mapping of settings", on=path)
    return Layer(str(path), typing.cast(Values, values))


def describe(loaded: Resolved[Any]) -> str:
    """The resolved config as YAML, each line with the origin of its value."""
    lines: list[str] = []
    _describe(loaded.config, "", 0, loaded.origins, lines)
    return "\n".join(lines)


def as_yaml(config: Any) -> str:
    """The resolved config as plain YAML that `read_yaml` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(as_values(config))))


def as_values(config: Any) -> dict[str, Any]:
    """The config as nested dicts of plain values."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _escaped(value: Any) -> Any:
    """Texts with `${` escaped, so that reading them does not interpolate."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _interpolations(value: Any) -> Iterator[str]:
    """The texts in which OmegaConf would interpolate."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _interpolations(item)
    elif isinstance(value, list):
        for item in value:
            yield from _interpolations(item)
    elif isinstance(value, str) and INTERPOLATION.search(value):
        yield value


def _describe(config: Any, path: str, depth: int, origins: Mapping[str, str], lines: list[str]) -> None:
    items = (
        config.items()
        if isinstance(config, dict)
        else [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    )
    indent = "  " * depth
    for name, value in items:
        if dataclasses.is_dataclass(value) or isinstance(value, dict):
            lines.append(f"{indent}{name}:")
            _describe(value, f"{path}{name}.", depth + 1, origins, lines)
        else:
            first, *rest = _shown(name, _plain(value)).split("\n")
            lines.append(f"{indent}{first}  # {origins.get(f'{path}{name}', 'default')}")
            lines.extend(f"{indent}{line}" for line in rest)


def _shown(name: str, value: Any) -> str:
    lines = OmegaConf.to_yaml(OmegaConf.create({name: _escaped(value)})).rstrip("\n")
    # A text of several lines is shown on one, as JSON, which is YAML too.
    return f"{name}: {json.dumps(value)}" if isinstance(value, str) and "\n" in lines else lines
