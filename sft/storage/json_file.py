"""Read JSON files, where an error names the file and says why it cannot be read, and compare JSON values."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.errors import DataError, SftError

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Exceptions of reading a file, and of parsing a content that is not as expected."""


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises: OSError or ValueError if there is none.
    """
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def readable(
    path: Path, kind: type[SftError] = DataError, *, what: str = "not readable", hint: str | None = None
) -> Iterator[None]:
    """Read and parse a file in this block: every exception in it is raised again as an error about that file."""
    try:
        yield
    except _BROKEN as error:
        raise kind(f"{what}: {_reason(error)}", on=path, hint=hint) from error


def _reason(error: Exception) -> str:
    """The reason as text; the text of a KeyError is only the key."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def flat(values: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a mapping itself, by its path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


def unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of every entry that differs; None where there is none."""
    for name in [*one, *(name for name in other if name not in one)]:
        if one.get(name) != other.get(name):
            yield name, one.get(name), other.get(name)
