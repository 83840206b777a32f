"""Configs of tests: like `dataclasses.replace`, with settings inside a group as `group__name`."""

from collections import defaultdict
from dataclasses import replace
from typing import Any, TypeVar

Config = TypeVar("Config")


def changed(config: Config, **changes: Any) -> Config:
    """The config with these settings changed, such as `checkpoint__every_steps=2`."""
    own: dict[str, Any] = {}
    groups: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in changes.items():
        group, is_inside, inner = name.partition("__")
        if is_inside:
            groups[group][inner] = value
        else:
            own[name] = value
    nested = {group: changed(own.pop(group, getattr(config, group)), **inside) for group, inside in groups.items()}
    return replace(config, **own, **nested)  # type: ignore[type-var]
