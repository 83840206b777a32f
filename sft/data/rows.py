"""One raw row: from bytes to a mapping that a recipe can read."""

import json
from collections.abc import Mapping
from typing import Any

from sft.chat.conversation import Drop, Reason
from sft.data.sources import RawRow

EXCERPT_CHARACTERS = 200


def parse(raw: RawRow) -> Mapping[str, Any] | Drop:
    """A raw row as a mapping, or why it is none."""
    if isinstance(raw, bytes):
        return _parse_line(raw)
    return _checked(raw)


def excerpt(raw: RawRow) -> str:
    """The start of a raw row as printable text."""
    if isinstance(raw, bytes):
        return raw[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]
    text = json.dumps(raw, ensure_ascii=False, default=str)[:EXCERPT_CHARACTERS]
    return text.encode("utf-8", "replace").decode("utf-8")


def _parse_line(line: bytes) -> Mapping[str, Any] | Drop:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Drop(Reason.INVALID_UTF8, f"byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return Drop(Reason.INVALID_JSON, str(error))
    # Only an escape can bring in half a character; most lines have none and need no second look.
    return _checked(row) if b"\\u" in line or not isinstance(row, dict) else row


def _checked(row: Any) -> Mapping[str, Any] | Drop:
    if not isinstance(row, dict):
        return Drop(Reason.WRONG_SCHEMA, f"{type(row).__name__}, expected an object")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return Drop(Reason.INVALID_UTF8, "a lone surrogate, which no UTF-8 text can hold")
    except (TypeError, ValueError, RecursionError):
        return Drop(Reason.WRONG_SCHEMA, "holds values that are not JSON")
    return row
