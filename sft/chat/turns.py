"""Where the texts of documents start and end: the system text, then the turns.

T = tokens of all documents, concatenated; N = documents; X = texts of all documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.formats.base import END, marker_kind
from sft.chat.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Turns:
    """Where the texts of many documents start.

    Shapes: starts_X, counted from the first token of the first document; counts_N, the number of texts per document.
    """

    starts_X: NDArray[np.int64]
    counts_N: NDArray[np.int64]

    @classmethod
    def of(cls, turn_starts: Sequence[NDArray[Any]], ends_N: NDArray[np.int64]) -> "Turns":
        """From each document's own turn starts, and where the documents end."""
        counts_N = np.array([len(starts) for starts in turn_starts], np.int64)
        starts_X = np.concatenate([np.zeros(0, np.int64), *turn_starts]).astype(np.int64)
        return cls(starts_X + np.repeat(np.append(0, ends_N[:-1]), counts_N), counts_N)

    def differing(self, other: "Turns") -> list[int]:
        """The documents whose turns differ."""
        if np.array_equal(self.counts_N, other.counts_N) and np.array_equal(self.starts_X, other.starts_X):
            return []
        pairs = zip(self._by_document(), other._by_document(), strict=True)
        return [number for number, (mine, theirs) in enumerate(pairs) if not np.array_equal(mine, theirs)]

    def _by_document(self) -> list[NDArray[np.int64]]:
        return np.split(self.starts_X, np.cumsum(self.counts_N)[:-1])


def read_turns(ids_T: NDArray[Any], ends_N: NDArray[np.int64], tokenizer: ChatTokenizer) -> Turns | None:
    """The turns read from the ids alone, or None if the format does not mark them by control tokens."""
    opens = tokenizer.opens_text
    if opens is None:
        return None
    starts_X = np.flatnonzero(opens[ids_T]) + 1
    return Turns(starts_X, np.diff(np.searchsorted(starts_X, ends_N, side="right"), prepend=0))


def read_turn_starts(ids_T: NDArray[Any], tokenizer: ChatTokenizer) -> NDArray[Any]:
    """The turn starts of one document, empty if the ids do not mark them."""
    turns = read_turns(ids_T, np.array([len(ids_T)]), tokenizer)
    return np.zeros(0, np.int64) if turns is None else turns.starts_X


def marker_starts(starts: NDArray[Any], tokenizer: ChatTokenizer) -> list[int]:
    """Where the marker before each text of one document starts."""
    markers = tokenizer.markers
    return [start - len(markers[marker_kind(number)]) for number, start in enumerate(starts.tolist())]


def text_spans(ids_T: NDArray[Any], starts: NDArray[Any], tokenizer: ChatTokenizer) -> list[tuple[int, int]]:
    """Where each text of one document starts and ends, without the markers around it."""
    end = tokenizer.markers[END]
    is_ended = len(end) > 0 and np.array_equal(ids_T[-len(end) :], end.ids)
    stops = [*marker_starts(starts, tokenizer)[1:], len(ids_T) - is_ended * len(end)]
    return list(zip(starts.tolist(), stops, strict=False))
