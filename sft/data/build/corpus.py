"""All finished chunks of a build as one table of documents; their tokens stay on disk until they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.supervision import answer_spans
from sft.chat.tokenizer import ChatTokenizer
from sft.data.build.chunk import DOCUMENT_FIELDS, ChunkFile

_OPEN_CHUNKS = 64


@dataclass(frozen=True)
class RowId:
    """Where a row comes from."""

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
        """A value per conversation, given to each of its documents."""
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
        """The row that the conversation came from."""
        document = self.first_documents[conversation]
        source, file = self._sources[self.source[document]], self._files[self.file[document]]
        return RowId(source, file, int(self.records["row"][document]))

    def turns(self, conversation: int, tokenizer: ChatTokenizer) -> list[str]:
        """The texts of the user's and assistant's turns, as the documents spell them."""
        first = int(self.first_documents[conversation])
        following = self.first_documents[conversation + 1 : conversation + 2]
        stop = int(following[0]) if len(following) else len(self)
        return [text for number in range(first, stop) for text in self._turns(number, tokenizer)]

    def opening(self, conversation: int, num_tokens: int, tokenizer: ChatTokenizer) -> str:
        """The start of the first question."""
        ids = self._ids(int(self.first_documents[conversation]))
        tags = np.flatnonzero(tokenizer.is_control[ids])
        start, stop = int(tags[1]) + 1, int(tags[2])
        return tokenizer.spell(ids[start : min(stop, start + num_tokens)]).decode("utf-8", "replace")

    def _turns(self, document: int, tokenizer: ChatTokenizer) -> list[str]:
        ids = self._ids(document)
        tags = np.flatnonzero(tokenizer.is_control[ids])
        spans = answer_spans(ids, tokenizer)
        # Every answer follows its question, which begins behind the tag before the answer's.
        questions = [(int(tags[np.searchsorted(tags, start - 1) - 1]) + 1, start - 1) for start, _ in spans]
        pairs = zip(questions, spans, strict=True)
        return [tokenizer.spell(ids[a:b]).decode("utf-8", "replace") for pair in pairs for a, b in pair]

    def _ids(self, document: int) -> NDArray[Any]:
        number = int(np.searchsorted(self.chunk_ends, document, side="right")) - 1
        ends, ids = self._tokens(number)
        local = document - int(self.chunk_ends[number])
        return ids[ends[local] : ends[local + 1]]

    @lru_cache(maxsize=_OPEN_CHUNKS)  # noqa: B019 - a corpus lives as long as its build
    def _tokens(self, number: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Where each document of a chunk starts, and the chunk's ids."""
        return self.token_ends(number), self.chunks[number].ids()
