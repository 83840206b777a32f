"""Annotations of a setting: its bounds, that it is a path, that no resume may change it.

    lr: Annotated[float, ABOVE_ZERO] = resume_fixed(default=2e-5)

A config reports contradictions between several settings in `contradictions()`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Union

from annotated_types import Interval

AT_LEAST_0, AT_LEAST_1, ABOVE_ZERO = Interval(ge=0), Interval(ge=1), Interval(gt=0)
SHARE = Interval(ge=0, le=1)
SEED = Interval(ge=0, lt=1 << 63)


class IsPath:
    """Marks the path of a file or folder: `~` is the home folder, and nothing else in it is expanded."""


PathText = Annotated[str, IsPath()]


def resume_fixed(**options: Any) -> Any:
    """A field that a resumed run may not change, because the result would no longer be the same run."""
    return field(metadata={"resume_fixed": True}, **options)


def problems(config: Any) -> Iterator[str]:
    """A sentence for every setting that is out of its bounds, and for settings that contradict each other."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if bound := next(_broken(hints[item.name], value), None):
            yield f"{item.name}={value}: expected {_shown(bound)}"
    yield from getattr(config, "contradictions", tuple)()


def unannotated(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type hint without its annotations, and these."""
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        return inner, tuple(extras)
    return hint, ()


def _broken(hint: Any, value: Any) -> Iterator[Interval]:
    """The bounds that a value, or an item of it, violates."""
    if value is None:
        return
    hint, extras = unannotated(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _broken(argument, value)
    elif origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        for kind, item in zip(kinds, value, strict=True):
            yield from _broken(kind, item)
    yield from (bound for bound in extras if isinstance(bound, Interval) and not _is_inside(value, bound))


def _is_inside(value: float, bound: Any) -> bool:
    return (
        math.isfinite(value)
        and (bound.ge is None or value >= bound.ge)
        and (bound.gt is None or value > bound.gt)
        and (bound.le is None or value <= bound.le)
        and (bound.lt is None or value < bound.lt)
    )


def _shown(bound: Interval) -> str:
    low = f"above {bound.gt}" if bound.gt is not None else f"at least {bound.ge}"
    high = (
        f" and up to {bound.le}" if bound.le is not None else f" and below {bound.lt}" if bound.lt is not None else ""
    )
    return low + high
