"""Read the items of a JSON array of any size, one at a time, with the standard library's decoder."""

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

CHUNK_CHARACTERS = 1 << 20
"""Text in memory at a time, if no item is longer."""
LONGEST_CUT_CHARACTERS = 16
"""More than the length of a truncated literal, number or escape; the longest is `-Infinity` without its end."""

_BLANKS = re.compile(r"[ \t\r\n]*")


def array_items(stream: IO[bytes], max_characters: int) -> Iterator[Any]:
    """The items of the array that a stream of UTF-8 holds.

    Raises: ValueError if it is not exactly one complete JSON array, or an item has `max_characters` or more: without a
    limit a missing quote would load the whole file.
    """
    window = _Window(io.TextIOWrapper(stream, encoding="utf-8-sig"), max_characters)
    window.take("[")
    if window.peek() != "]":
        yield window.value()
        while window.peek() == ",":
            window.take(",")
            yield window.value()
    window.take("]")
    if window.peek():
        raise ValueError("text after the end of the array")


class _Window:
    """The part of the text that is in memory."""

    def __init__(self, text: IO[str], max_characters: int) -> None:
        self._text, self._max_characters = text, max_characters
        self._piece, self._place = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            blanks = _BLANKS.match(self._piece, self._place)
            self._place = blanks.end() if blanks else self._place
            if self._place < len(self._piece) or not self._grow():
                return self._piece[self._place : self._place + 1]

    def take(self, wanted: str) -> None:
        found = self.peek()
        if found != wanted:
            raise ValueError(f"expected {wanted!r}, found {found!r}" if found else "the array does not end")
        self._place += 1

    def value(self) -> Any:
        """Read the next JSON value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._piece, self._place)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error) or not self._grow():
                    place = error.pos - self._place
                    raise ValueError(f"{error.msg}, {place:,} characters into the item") from error
            else:
                # A value that ends at the end of the window may be the first part of a number.
                if end < len(self._piece) or not self._grow():
                    self._place = end
                    return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text may resolve the error: an unterminated string is reported at its start, not at the cut."""
        at_cut = error.pos >= len(self._piece) - LONGEST_CUT_CHARACTERS
        return at_cut or error.msg.startswith("Unterminated string")

    def _grow(self) -> bool:
        """Read more and discard what was read; the window doubles, so that a long item is not decoded many times."""
        kept = len(self._piece) - self._place
        if kept >= self._max_characters:
            raise ValueError(f"an item of {self._max_characters:,} characters or more")
        more = self._text.read(min(max(CHUNK_CHARACTERS, kept), self._max_characters - kept))
        self._piece, self._place = self._piece[self._place :] + more, 0
        return bool(more)
