"""The items of a JSON array of any size, one at a time, by the standard library's decoder."""

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

CHUNK_CHARACTERS = 1 << 20
"""How much text is held at a time, if no item is longer."""
MAX_ITEM_CHARACTERS = 1 << 26
"""No conversation is as long; without a limit a missing quote would load the whole file."""

_BLANKS = re.compile(r"[ \t\r\n]*")


def array_items(stream: IO[bytes]) -> Iterator[Any]:
    """The items of the array that a stream of UTF-8 holds.

    Raises: ValueError if it is not one whole JSON array and nothing else.
    """
    window = _Window(io.TextIOWrapper(stream, encoding="utf-8-sig"))
    window.take("[")
    if window.peek() != "]":
        yield window.value()
        while window.peek() == ",":
            window.take(",")
            yield window.value()
    window.take("]")
    if window.peek():
        raise ValueError("text behind the end of the array")


class _Window:
    """A piece of a text, moved along as it is read."""

    def __init__(self, text: IO[str]) -> None:
        self._text, self._piece, self._place = text, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; nothing at the end."""
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
        """Any JSON value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._piece, self._place)
            except json.JSONDecodeError:
                if not self._grow():
                    raise
            else:
                # What stops at the end of the piece may be the first half of a number.
                if end < len(self._piece) or not self._grow():
                    self._place = end
                    return value

    def _grow(self) -> bool:
        """Read on, forgetting what is behind; at least doubled, so that a long item is not decoded over and over."""
        kept = len(self._piece) - self._place
        if kept > MAX_ITEM_CHARACTERS:
            raise ValueError(f"an item of more than {MAX_ITEM_CHARACTERS:,} characters")
        more = self._text.read(max(CHUNK_CHARACTERS, kept))
        self._piece, self._place = self._piece[self._place :] + more, 0
        return bool(more)
