"""Text as word hashes, the units of exact-phrase and near-duplicate comparison.

Shapes: C characters, W words, T texts, R runs.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

LONGEST_RUN = 1024
"""Longer words are hashed by their first characters."""
_BLOCK = 1 << 15

# Odd, so that multiplying loses no bits and can be undone.
_MULTIPLIER = 0x9E3779B97F4A7C15
_POWERS = np.cumprod(np.full(_BLOCK + LONGEST_RUN, _MULTIPLIER, np.uint64))
_INVERSE_POWERS = np.cumprod(np.full(_BLOCK + LONGEST_RUN, pow(_MULTIPLIER, -1, 1 << 64), np.uint64))

_SEPARATOR, _IN_WORD, _WHOLE_WORD = range(3)
# Scripts that write no spaces: each of their characters is a word.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF))


def words(text: str) -> NDArray[np.uint64]:
    """A hash of each case-folded word of a text, in order; the same in every process and on every machine."""
    return words_of_texts([text])[0]


def words_of_texts(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The word hashes of many texts, end to end, and the number of words of each.

    Shapes: hashes_W, lengths_T.
    """
    folded = [_fold(text) for text in texts]
    joined = "\n".join(folded)
    codes_C = _codes(joined)
    starts_W, ends_W = _spans(codes_C)
    borders_T = np.cumsum([0, *(len(text) + 1 for text in folded)])
    lengths_T = np.diff(np.searchsorted(starts_W, borders_T))
    return _hash_runs(codes_C, starts_W, np.minimum(ends_W, starts_W + LONGEST_RUN)), lengths_T


def split_words(text: str) -> list[str]:
    """The case-folded words of a text, those that `words` hashes."""
    folded = _fold(text)
    starts_W, ends_W = _spans(_codes(folded))
    return [folded[start:end] for start, end in zip(starts_W.tolist(), ends_W.tolist(), strict=True)]


def ngrams(words_W: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A hash of every run of n successive words, in order; empty if there are fewer words."""
    starts_R = np.arange(max(len(words_W) - n + 1, 0))
    return _hash_runs(words_W, starts_R, starts_R + n)


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def _codes(text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _spans(codes_C: NDArray[np.uint8] | NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each word starts and ends."""
    table = _kinds()
    kinds_C = table[codes_C if codes_C.dtype == np.uint8 else np.minimum(codes_C, len(table) - 1)]
    inside = np.zeros(len(codes_C) + 2, np.bool_)
    inside[1:-1] = kinds_C == _IN_WORD
    whole_C = kinds_C == _WHOLE_WORD
    starts_C = (inside[1:-1] & ~inside[:-2]) | whole_C
    ends_C = (inside[1:-1] & ~inside[2:]) | whole_C
    return np.flatnonzero(starts_C), np.flatnonzero(ends_C) + 1


@cache
def _kinds() -> NDArray[np.uint8]:
    """The kind of each character: separator, part of a word, or whole word; the last entry is for all above U+FFFF."""
    table = np.array(
        [_IN_WORD if unicodedata.category(chr(code))[0] in "LMN" else _SEPARATOR for code in range(0x10001)], np.uint8
    )
    for first, last in _UNSPACED:
        table[first : last + 1] = np.where(table[first : last + 1] == _IN_WORD, _WHOLE_WORD, _SEPARATOR)
    table[ord("_")], table[-1] = _IN_WORD, _WHOLE_WORD
    return table


def _hash_runs(
    values: NDArray[np.uint8] | NDArray[np.uint32] | NDArray[np.uint64],
    starts_R: NDArray[np.int64],
    ends_R: NDArray[np.int64],
) -> NDArray[np.uint64]:
    """The polynomial of each run of values modulo 2^64, by differences of running sums, with its bits mixed."""
    hashes_R = np.empty(len(starts_R), np.uint64)
    for base in range(0, len(values), _BLOCK):
        block = values[base : base + _BLOCK + LONGEST_RUN]
        sums = np.zeros(len(block) + 1, np.uint64)
        np.cumsum(block * _POWERS[: len(block)], out=sums[1:])
        mine = slice(*np.searchsorted(starts_R, (base, base + _BLOCK)))
        starts = starts_R[mine] - base
        hashes_R[mine] = (sums[ends_R[mine] - base] - sums[starts]) * _INVERSE_POWERS[starts]
    hashes_R ^= hashes_R >> np.uint64(32)
    hashes_R *= np.uint64(_MULTIPLIER)
    hashes_R ^= hashes_R >> np.uint64(29)
    return hashes_R
