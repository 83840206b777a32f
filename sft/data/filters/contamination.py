"""Drop conversations that share text with evaluation questions, which would invalidate a later evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Drop, Reason
from sft.data.sources.files import COMPRESSED, read_rows
from sft.data.sources.rows import parse
from sft.data.words import ngrams, split_words, words, words_of_texts
from sft.errors import DataError

LEAST_WORDS = 8
"""Shorter evaluation texts are not searched for: they are too common to be evidence."""
_ROWS = (".json", ".jsonl", ".parquet")
_SHOWN_CHARACTERS = 200
_ITEMS_PER_BATCH = 256


@dataclass(frozen=True)
class _Item:
    """One text of an evaluation file."""

    file: str
    row: int
    text: str


class _Table:
    """The positions of each n-gram in the concatenated evaluation texts, by its hash."""

    def __init__(self, n: int, words_W: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        self.n = n
        hashes = ngrams(words_W, n)[places]
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], places[order]
        # A bitmap with 32 to 64 bits per hash: most of a text's n-grams need no binary search.
        num_bits_log2 = len(hashes).bit_length() + 5
        self._shift = np.uint64(64 - num_bits_log2)
        self._bits = np.zeros(1 << (num_bits_log2 - 3), np.uint8)
        np.bitwise_or.at(self._bits, *self._byte_and_bit(hashes))

    def find(self, words_M: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """Each (place in the words, place in the evaluation texts) with the same hash."""
        if not len(self._hashes):
            return
        hashes = ngrams(words_M, self.n)
        byte, bit = self._byte_and_bit(hashes)
        likely = np.flatnonzero(self._bits[byte] & bit)
        first, last = (np.searchsorted(self._hashes, hashes[likely], side) for side in ("left", "right"))
        for hit in np.flatnonzero(first < last).tolist():
            for found in self._places[first[hit] : last[hit]].tolist():
                yield int(likely[hit]), found

    def _byte_and_bit(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        numbers = hashes >> self._shift
        return numbers >> np.uint64(3), np.uint8(1) << (numbers & np.uint64(7)).astype(np.uint8)


class EvaluationIndex:
    """Every run of n words of the evaluation texts; a text of fewer words is one run."""

    def __init__(self, items: Sequence[_Item], ngram_words: int) -> None:
        self._items = items
        batches = [items[first : first + _ITEMS_PER_BATCH] for first in range(0, len(items), _ITEMS_PER_BATCH)]
        hashed = [words_of_texts([item.text for item in batch]) for batch in batches]
        words_W = np.concatenate([hashes for hashes, _ in hashed])
        lengths_I = np.concatenate([lengths for _, lengths in hashed])
        self._starts_I = np.cumsum(lengths_I) - lengths_I
        left_W = np.repeat(self._starts_I + lengths_I, lengths_I) - np.arange(len(words_W))
        self._long = _Table(ngram_words, words_W, np.flatnonzero(left_W >= ngram_words))
        is_short_I = (lengths_I >= LEAST_WORDS) & (lengths_I < ngram_words)
        self._openings = _Table(LEAST_WORDS, words_W, self._starts_I[is_short_I])
        # One table per length: a short text must match with all of its words, not only with the first ones.
        self._short = [
            _Table(length, words_W, self._starts_I[lengths_I == length])
            for length in np.unique(lengths_I[is_short_I]).tolist()
        ]

    @classmethod
    def load(cls, files: Sequence[Path], ngram_words: int) -> "EvaluationIndex":
        """Read evaluation texts: paragraphs of a .txt, or all strings of the rows of a .json, .jsonl or .parquet.

        Raises: DataError if a file is missing, unreadable, or has no text of enough words.
        """
        least = min(LEAST_WORDS, ngram_words)
        items: list[_Item] = []
        for path in files:
            found = [_Item(path.name, row, text) for row, text in _texts(path) if len(text) >= least]
            if not any(len(split_words(item.text)) >= least for item in found):
                raise DataError(f"no text of at least {least} words", on=path, hint="is it the right evaluation file?")
            items += found
        return cls(items, ngram_words)

    def match(self, conversation: Conversation) -> Drop | None:
        """A Drop that names the first evaluation text found and the words in common, or None."""
        text = "\n".join([message.text for message in conversation.messages])
        words_M = words(text)
        spelled: list[str] = []
        for table in self._tables_for(words_M):
            for place, found in table.find(words_M):
                spelled = spelled or split_words(text)
                index = int(np.searchsorted(self._starts_I, found, side="right")) - 1
                item = self._items[index]
                common = _num_common(spelled[place:], split_words(item.text)[found - int(self._starts_I[index]) :])
                if common >= table.n:  # else the hashes collide
                    shown = " ".join(spelled[place : place + common])[:_SHOWN_CHARACTERS]
                    detail = f'{common} words in common with {item.file}, row {item.row}: "{shown}"'
                    return Drop(Reason.CONTAMINATED, detail)
        return None

    def _tables_for(self, words_M: NDArray[np.uint64]) -> Iterator[_Table]:
        """The tables to search: most conversations hold no short text's first words, so one table is enough."""
        yield self._long
        if next(self._openings.find(words_M), None) is not None:
            yield from self._short


def _num_common(left: Sequence[str], right: Sequence[str]) -> int:
    """The number of words that are equal, counted from the start."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(left), len(right)))


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise DataError("no such evaluation file", on=path, hint="see evaluation_files")
    if path.suffix == ".txt":
        yield from _paragraphs(path)
        return
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    if plain.suffix not in _ROWS:
        raise DataError("not an evaluation file", on=path, hint=f"expected .txt, {', '.join(_ROWS)}, or those as .gz")
    for number, raw in read_rows(path):
        row = parse(raw)
        if isinstance(row, Drop):
            raise DataError(f"row {number}: {row.reason}: {row.detail}", on=path, hint="expected one object per row")
        for text in _strings(row):
            yield number, text


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: byte {error.start}", on=path, hint="save it as UTF-8") from error
    blocks = (" ".join(block) for filled, block in groupby(lines, lambda line: bool(line.strip())) if filled)
    yield from enumerate(blocks)


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
