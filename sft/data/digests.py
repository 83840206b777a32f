"""Hashes by which conversations count as equal, or as similar enough to be in the same split."""

import hashlib
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation


def digest(conversation: Conversation) -> int:
    """A 64-bit hash of the turns, independent of the system text and the Unicode normal form."""
    # The length in bytes before each turn makes the concatenation unambiguous.
    return _hash("".join([_with_length(_composed(message.text)) for message in conversation.messages]))


OPENING_CHARACTERS = 1000
"""The part of a first question that is compared; the text after it is mostly a passage."""


def group_digest(conversation: Conversation) -> int:
    """A 64-bit hash of the first question, independent of case and white space."""
    opening = _composed(conversation.messages[0].text[:OPENING_CHARACTERS]).casefold()
    return _hash(" ".join(opening.split()))


def content_digests(ids_T: NDArray[Any], loss_mask_T: NDArray[Any], ends_N: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of the tokens and loss mask of each of the concatenated documents.

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
