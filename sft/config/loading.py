"""YAML files and `key=value` arguments become a typed config; every mistake is reported at once."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft.config.fields import IsPath, problems, unannotated
from sft.errors import ConfigError, listed
from sft.redact import refuse_secrets

T = TypeVar("T")
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """Values from one origin, which override those of earlier layers."""

    origin: str
    values: Values


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """A config and, for every setting that is not a default, its origin."""

    config: T
    origins: dict[str, str]


MISSING = "???"
"""OmegaConf's marker for a value that must be set elsewhere."""

BAD: Any = object()
"""Placeholder for a wrong value, until all mistakes are reported."""


class _Text(str):
    """A value typed on the command line, not yet parsed as the type of its field."""


def load(schema: type[T], layers: Sequence[Layer]) -> Resolved[T]:
    """Build `schema` from the layers, the last one winning.

    Raises: ConfigError listing every unknown key, wrong type, missing value and contradiction.
    """
    refuse_secrets((layer.origin, layer.values) for layer in layers)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        _overlay(merged, _expanded(schema, layer.values), layer.origin, origins, "")
    mistakes: list[str] = []
    config = _build(schema, merged, "", origins, mistakes)
    if mistakes:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError(f"{count} in the configuration{listed(mistakes)}")
    return Resolved(typing.cast(T, config), origins)


def with_todays_names(schema: Any, layer: Layer) -> Layer:
    """A layer that an earlier version of sft wrote, with its keys renamed to the current names."""
    formerly: Mapping[str, str] = getattr(schema, "FORMERLY", {})
    values = {key: value for key, value in layer.values.items() if key not in formerly}
    for key in (key for key in formerly if key in layer.values):
        group, _, name = formerly[key].rpartition(".")
        if not group:
            values[name] = layer.values[key]
        elif isinstance(inside := values.get(group, {}), Mapping):  # anything else is a mistake, reported on loading
            values[group] = {name: layer.values[key], **inside}
    return Layer(layer.origin, values)


def read_arguments(arguments: Sequence[str]) -> Layer:
    """The `key=value` arguments as a layer; dots in a key step into nested settings."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"argument {argument!r}: expected key=value", hint="for example: out=runs/first")
        *parents, name = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"argument {argument!r}: {parent} was given a value before")
        if isinstance(place.get(name), dict):
            raise ConfigError(f"argument {argument!r}: settings inside {name} were given before")
        place[name] = _Text(value)
    return Layer("command line", values)


def _expanded(schema: Any, values: Values) -> Values:
    """The values with mappings from the command line parsed, as in `optimizer={lr: 1e-5}`."""
    hints = _hints(schema) if dataclasses.is_dataclass(schema) else {}
    entry = typing.get_args(schema)[1] if typing.get_origin(schema) is dict else None
    expanded = dict(values)
    for key, value in values.items():
        hint = hints.get(key, entry)
        if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
            with suppress(ValueError):  # reported later: not a mapping
                value = _parse(value)
            expanded[key] = _expanded(hint, value) if isinstance(value, Mapping) else value
    return expanded


def _overlay(target: dict[str, Any], values: Values, origin: str, origins: dict[str, str], prefix: str) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            nested = target.get(key)
            if not isinstance(nested, dict):
                nested = target[key] = {}
            _overlay(nested, value, origin, origins, f"{name}.")
        elif value != MISSING:
            target[key] = value
            origins[name] = origin


def _build(schema: Any, values: Any, path: str, origins: Mapping[str, str], mistakes: list[str]) -> Any:
    """An instance of the dataclass, mistakes noted; BAD if a field has no value because of one."""
    if not isinstance(values, dict):
        mistakes.append(f"{path.rstrip('.')}: expected a mapping, got {values!r}")
        return BAD
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = _hints(schema)
    for key in values:
        if key not in fields:
            mistakes.append(_unknown(str(key), path, schema, origins))
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{path}{name}", origins, mistakes)
            if arguments[name] is BAD and (today := field.metadata.get("formerly", {}).get(str(values[name]).lower())):
                mistakes[-1] += f"; write {today} instead"
        elif dataclasses.is_dataclass(hints[name]) and field.default_factory is dataclasses.MISSING:
            arguments[name] = _build(hints[name], {}, f"{path}{name}.", origins, mistakes)
        elif not _has_default(field):
            mistakes.append(f"{path}{name}: missing, please set it")
    # A wrong setting is replaced by its default, so that the others can be checked in the same run.
    arguments = {name: value for name, value in arguments.items() if value is not BAD}
    if any(name not in arguments and not _has_default(field) for name, field in fields.items()):
        return BAD
    config = schema(**arguments)
    mistakes.extend(f"{path}{text}" for text in problems(config))
    return config


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def _unknown(key: str, path: str, schema: Any, origins: Mapping[str, str]) -> str:
    place = next((origin for name, origin in origins.items() if (name + ".").startswith(f"{path}{key}.")), "")
    found = f"{path}{key}: unknown key{f' in {place}' if place else ''}; "
    if today := getattr(schema, "FORMERLY", {}).get(key):
        return f"{found}it is called {path}{today} now"
    known = [field.name for field in dataclasses.fields(schema)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return found + (f"did you mean {path}{near[0]}?" if near else f"known here: {', '.join(known)}")


def _convert(hint: Any, value: Any, path: str, origins: Mapping[str, str], mistakes: list[str]) -> Any:
    """The value as the hinted type, or BAD with the mistake noted."""
    hint, extras = unannotated(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{path}.", origins, mistakes)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        if not isinstance(value, dict):
            mistakes.append(f"{path}: expected a mapping, got {value!r}")
            return BAD
        items = {key: _convert(arguments[1], item, f"{path}.{key}", origins, mistakes) for key, item in value.items()}
        return BAD if BAD in items.values() else items
    try:
        return _scalar(hint, value, extras)
    except ValueError as error:
        place = origins.get(path)
        mistakes.append(f"{path}={value!r}{f' in {place}' if place else ''}: {error}")
        return BAD


def _scalar(hint: Any, value: Any, outer: tuple[Any, ...] = ()) -> Any:
    hint, extras = unannotated(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        empty = value is None or (isinstance(value, _Text) and value.lower() in ("null", "none"))
        return None if empty else _scalar(inner, value)
    if origin is Literal:
        if value in arguments:
            return str(value)
        raise ValueError(f"expected one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        return _tuple(arguments, _parse(value))
    if hint is str:
        if not isinstance(value, str):
            raise ValueError("expected text; put it in quotes")
        is_path = any(extra is IsPath or isinstance(extra, IsPath) for extra in (*extras, *outer))
        return _path(str(value)) if is_path else str(value)
    return _number(hint, _parse(value))


def _path(text: str) -> str:
    """The path with the home folder in place of a leading `~`."""
    if "${" in text:
        raise ValueError("expected a path without ${…}, which is not filled in")
    home = text == "~" or text.startswith("~/")
    if text.startswith("~") and not home:
        raise ValueError("expected ~/… for your own home folder, or the whole path")
    return str(Path(text).expanduser()) if home else text


def _number(hint: Any, value: Any) -> Any:
    is_bool = isinstance(value, bool)
    if (hint is bool and is_bool) or (hint is int and isinstance(value, int) and not is_bool):
        return value
    if hint is float and isinstance(value, int | float) and not is_bool:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError("expected a smaller number") from error
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}[hint]
    raise ValueError(f"expected {wanted}")


def _tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if arguments[-1] is Ellipsis:
        kinds = [arguments[0]] * len(items)
    elif len(items) == len(arguments):
        kinds = list(arguments)
    else:
        raise ValueError(f"expected {len(arguments)} values")
    return tuple(_scalar(kind, item) for kind, item in zip(kinds, items, strict=True))


def _parse(value: Any) -> Any:
    """A command-line text read as YAML, anything else as it is."""
    if not isinstance(value, _Text):
        return value
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore[index,call-overload]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError("not readable as a YAML value") from error
