"""What makes two conversations the same, or near enough to stay on one side of a split."""

import hashlib
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation


def digest(conversation: Conversation) -> int:
    """64 bits that are equal for equal turns, whatever the system text and the Unicode form."""
    turns = [_composed(message.text).encode("utf-8", "surrogatepass") for message in conversation.messages]
    # With its length before it, no turn can pass for two.
    return _hash(b"".join(b"%d:%b" % (len(turn), turn) for turn in turns))


OPENING_CHARACTERS = 1000
"""So much of a first question tells it from others; what follows is mostly a passage."""


def group_digest(conversation: Conversation) -> int:
    """64 bits that are equal for conversations that open with the same question, but for case and white space."""
    opening = _composed(conversation.messages[0].text[:OPENING_CHARACTERS]).casefold()
    return _hash(" ".join(opening.split()).encode("utf-8", "surrogatepass"))


def content_digest(ids: NDArray[Any], loss_mask: NDArray[Any]) -> int:
    """64 bits that are equal for documents of equal tokens with equal loss."""
    return _hash(ids.astype("<u4").tobytes() + loss_mask.astype(np.uint8).tobytes())


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
