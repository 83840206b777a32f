"""All finished chunks of a build as one table of documents; their tokens stay on disk until they are read."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import text_spans
from sft.data.build.chunk import DOCUMENT_FIELDS, ChunkFile
from sft.data.documents import TurnStarts

_OPEN_CHUNKS = 64


@dataclass(frozen=True)
class RowId:
    """The origin of a row: source, file and row number."""

    source: str
    file: str
    row: int


class Corpus:
    """Documents in the order of sources, files, rows and pieces.

    Memory: some 100 bytes per document. A conversation is the documents of one row.
    """

    def __init__(self, chunks: Sequence[ChunkFile], sources: Sequence[str], files: Sequence[str]) -> None:
        self.chunks, self._sources, self._files = chunks, sources, files
        counts = [len(chunk.documents()) for chunk in chunks]
        self.records: NDArray[Any] = np.concatenate([np.zeros(0, DOCUMENT_FIELDS), *(u.documents() for u in chunks)])
        """One record of DOCUMENT_FIELDS per document."""
        self.source = np.repeat(np.array([sources.index(chunk.source) for chunk in chunks], np.int16), counts)
        self.file = np.repeat(np.array([files.index(chunk.file) for chunk in chunks], np.int32), counts)
        self.chunk_ends = np.cumsum([0, *counts])
        """Chunk u holds the documents from chunk_ends[u] up to chunk_ends[u + 1]."""
        row, file = self.records["row"], self.file
        changes = np.flatnonzero((row[1:] != row[:-1]) | (file[1:] != file[:-1]))  # no file belongs to two sources
        self.first_documents = np.append(0, changes + 1) if len(row) else np.zeros(0, np.int64)
        """The first document of every conversation."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_conversations(self) -> int:
        return len(self.first_documents)

    def per_document(self, of_conversations: NDArray[Any]) -> NDArray[Any]:
        """Repeat a value per conversation for each of its documents."""
        sizes = np.diff(self.first_documents, append=len(self))
        return np.repeat(of_conversations, sizes)

    def token_ends(self, number: int) -> NDArray[np.int64]:
        """Where each document of a chunk starts among its tokens, and where the last one ends."""
        lengths = self.records["num_tokens"][self.chunk_ends[number] : self.chunk_ends[number + 1]]
        return np.append(0, np.cumsum(lengths, dtype=np.int64))

    def bands(self, number: int) -> NDArray[np.uint64]:
        """One band of the signatures of all conversations."""
        return np.concatenate([np.zeros(0, np.uint64), *(chunk.bands()[:, number] for chunk in self.chunks)])

    def place(self, conversation: int) -> RowId:
        """The raw row of the conversation."""
        document = self.first_documents[conversation]
        source, file = self._sources[self.source[document]], self._files[self.file[document]]
        return RowId(source, file, int(self.records["row"][document]))

    def turns(self, conversation: int, tokenizer: ChatTokenizer) -> list[str]:
        """The texts of the user's and assistant's turns, decoded from the documents."""
        first = int(self.first_documents[conversation])
        following = self.first_documents[conversation + 1 : conversation + 2]
        stop = int(following[0]) if len(following) else len(self)
        spelt: list[str] = []
        for number in range(first, stop):
            ids, spans = self._texts(number, tokenizer)
            spelt += [tokenizer.spell(ids[a:b]).decode("utf-8", "replace") for a, b in spans[1:]]
        lead = tokenizer.format.turn_lead
        return [text.removeprefix(lead) for text in spelt]

    def opening(self, conversation: int, num_tokens: int, tokenizer: ChatTokenizer) -> str:
        """The start of the first question."""
        ids, spans = self._texts(int(self.first_documents[conversation]), tokenizer)
        start, stop = spans[1]
        spelt = tokenizer.spell(ids[start : min(stop, start + num_tokens)]).decode("utf-8", "replace")
        return spelt.removeprefix(tokenizer.format.turn_lead)

    def turn_starts(self, kept: NDArray[np.bool_]) -> TurnStarts:
        """Where the texts of the kept documents start."""
        counts = self.records["num_texts"]
        parts: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)]
        for chunk, (first, stop) in zip(self.chunks, itertools.pairwise(self.chunk_ends.tolist()), strict=True):
            parts.append(chunk.turn_starts()[np.repeat(kept[first:stop], counts[first:stop])])
        return TurnStarts(np.concatenate(parts), np.append(0, np.cumsum(counts[kept], dtype=np.int64)))

    def _texts(self, document: int, tokenizer: ChatTokenizer) -> tuple[NDArray[Any], list[tuple[int, int]]]:
        """A document's ids, and the span of each of its texts."""
        number = int(np.searchsorted(self.chunk_ends, document, side="right")) - 1
        ends, ids, turn_ends, turn_starts = self._tokens(number)
        local = document - int(self.chunk_ends[number])
        mine = ids[ends[local] : ends[local + 1]]
        return mine, text_spans(mine, turn_starts[turn_ends[local] : turn_ends[local + 1]], tokenizer)

    @lru_cache(maxsize=_OPEN_CHUNKS)  # noqa: B019 - a corpus lives as long as its build
    def _tokens(self, number: int) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64], NDArray[np.uint16]]:
        """A chunk's document offsets in its ids, the ids, the document offsets in its turn starts, the turn starts."""
        counts = self.records["num_texts"][self.chunk_ends[number] : self.chunk_ends[number + 1]]
        turn_ends, chunk = np.append(0, np.cumsum(counts, dtype=np.int64)), self.chunks[number]
        return self.token_ends(number), chunk.ids(), turn_ends, chunk.turn_starts()
