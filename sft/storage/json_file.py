"""Read JSON files; an error names the file and says why it cannot be read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.errors import DataError, SftError

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError)
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
