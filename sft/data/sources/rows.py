"""Parse one raw row to a mapping that a recipe can read. The only file that imports msgspec."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from sft.chat.conversation import Drop, Reason
from sft.data.sources.files import MAX_ROW_BYTES, RawRow

EXCERPT_CHARACTERS = 200
# Twice as fast as the standard library, with equal results for every line that it accepts.
_DECODE = msgspec.json.Decoder().decode


def parse(raw: RawRow, max_bytes: int = MAX_ROW_BYTES) -> Mapping[str, Any] | Drop:
    """A raw row as a mapping, or a Drop with the reason why it cannot be parsed."""
    if isinstance(raw, bytes):
        too_large = len(raw) > max_bytes and len(raw.rstrip(b"\r\n")) > max_bytes
    else:
        too_large = row_size(raw) > max_bytes
    if too_large:
        return Drop(Reason.ROW_TOO_LARGE, f"more than {max_bytes:,} bytes")
    return _parse_line(raw) if isinstance(raw, bytes) else _checked(raw)


def row_size(value: object) -> int:
    """The approximate number of bytes of a row."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(row_size, value.values()))
    if isinstance(value, list):
        return sum(map(row_size, value))
    return 8


def excerpt(raw: RawRow) -> str:
    """The start of a raw row as printable text."""
    if isinstance(raw, bytes):
        return raw[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]
    text = json.dumps(raw, ensure_ascii=False, default=str)[:EXCERPT_CHARACTERS]
    return text.encode("utf-8", "replace").decode("utf-8")


def _parse_line(line: bytes) -> Mapping[str, Any] | Drop:
    try:
        row = _DECODE(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _parse_odd_line(line)
    return row if isinstance(row, dict) else _checked(row)


def _parse_odd_line(line: bytes) -> Mapping[str, Any] | Drop:
    """Parse a line that msgspec rejects: the standard library accepts a little more and reports what is wrong."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Drop(Reason.INVALID_UTF8, f"byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return Drop(Reason.INVALID_JSON, str(error))
    return _checked(row)


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
