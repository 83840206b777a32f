"""Repair damaged encodings: undo mojibake, remove invisible control characters. The only file that imports ftfy."""

import re

from sft.chat.conversation import Conversation, Drop
from sft.data.filters.rewrite import rewrite

_ASCII = bytes(range(128))
# The encodings with which UTF-8 bytes are wrongly decoded.
_CODE_PAGES = ("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1257", "cp437")
_MISTAKEN = ("latin-1", "iso8859-2", "mac-roman", *_CODE_PAGES)

_FIRST_BYTE = 0xC2
# In mac-roman they stand for first bytes too, but they are far too common in undamaged text.
_PUNCTUATION = set("–—‘’“”…\xa0")


def _spelled(first: int, last: int) -> str:
    """The characters to which the wrong encodings decode a range of bytes, for use inside a regex class."""
    characters = {c for name in _MISTAKEN for c in bytes(range(first, last + 1)).decode(name, "ignore")}
    return re.escape("".join(sorted(characters - _PUNCTUATION if first >= _FIRST_BYTE else characters)))


_CONTROLS = re.compile("[\x80-\x9f]")
# Two successive bytes of a UTF-8 character, each decoded as a character; a no-break space may have become a space.
_SUSPICIOUS = re.compile(f"[{_spelled(_FIRST_BYTE, 0xF4)}][{_spelled(0x80, 0xBF)}]|[ÃÂ\x80-\x9f]")
_NONCHARACTERS = "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
_INVISIBLE = re.compile(
    "[\u200b\ufeff"  # zero-width space, byte-order mark
    "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates of writing direction
    "\ufff9-\ufffb"  # interlinear annotation
    f"\ufdd0-\ufdef{_NONCHARACTERS}]"
)


def repaired(conversation: Conversation) -> Conversation | Drop:
    """The conversation with every text repaired: itself if nothing was damaged, a Drop if a turn became blank."""
    if conversation.system is None and all(message.text.isascii() for message in conversation.messages):
        return conversation
    return rewrite(conversation, repair)


def repair(text: str) -> str:
    """The text with mojibake undone and without invisible controls; a text without damage is unchanged.

    Invariant: joiners, marks and all other characters that scripts and emoji need are kept.
    """
    if text.isascii():
        return text
    # Most texts are ASCII except for a few characters: searching only those is several times as fast.
    others = text.encode("utf-8", "surrogatepass").translate(None, _ASCII).decode("utf-8", "surrogatepass")
    fixed = text
    if _INVISIBLE.search(others):
        fixed = _INVISIBLE.sub("", fixed)
    if _SUSPICIOUS.search(others):
        # Controls go last: they may be bytes of misread characters.
        fixed = _INVISIBLE.sub("", _CONTROLS.sub("", "\n".join(map(_undo_mojibake, fixed.split("\n")))))
    # The removed characters may have hidden more damage.
    return text if fixed == text else repair(fixed.strip())


def _undo_mojibake(line: str) -> str:
    if not _SUSPICIOUS.search(line):
        return line
    import ftfy

    return ftfy.fix_encoding(line)
