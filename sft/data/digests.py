"""What makes two conversations the same, or near enough to stay on one side of a split."""

import hashlib
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation


def digest(conversation: Conversation) -> int:
    """64 bits that are equal for equal turns, whatever the system text and the Unicode form."""
    # With its length in bytes before it, no turn can pass for two.
    return _hash("".join([_with_length(_composed(message.text)) for message in conversation.messages]))


OPENING_CHARACTERS = 1000
"""So much of a first question tells it from others; what follows is mostly a passage."""


def group_digest(conversation: Conversation) -> int:
    """64 bits that are equal for conversations that open with the same question, but for case and white space."""
    opening = _composed(conversation.messages[0].text[:OPENING_CHARACTERS]).casefold()
    return _hash(" ".join(opening.split()))


def content_digests(ids_T: NDArray[Any], loss_mask_T: NDArray[Any], ends_N: NDArray[np.int64]) -> NDArray[np.uint64]:
    """For each of the documents, which lie end to end, 64 bits that are equal for equal tokens with equal loss.

    Shapes: ids_T and loss_mask_T with the tokens of all documents; ends_N, where each document ends; the result, one
    number per document.
    """
    ids, mask = memoryview(ids_T.astype("<u4").tobytes()), memoryview(loss_mask_T.astype(np.uint8).tobytes())
    hashed = bytearray()
    start = 0
    for end in ends_N.tolist():
        state = hashlib.sha256(ids[4 * start : 4 * end])
        state.update(mask[start:end])
        hashed += state.digest()[:8]
        start = end
    return np.frombuffer(hashed, ">u8").astype(np.uint64)


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _with_length(text: str) -> str:
    num_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return f"{num_bytes}:{text}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
