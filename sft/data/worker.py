"""One chunk of raw rows → documents: convert, filter, encode, prove. Runs in a worker process."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Drop, Reason
from sft.chat.proof import first_violations
from sft.chat.template import CARD_SYSTEM_PROMPT, Encoded, Layout, encode
from sft.chat.tokenizer import ChatTokenizer
from sft.config import BuildConfig, SourceConfig
from sft.data.filters import other_language
from sft.data.recipes import load_converter
from sft.data.rows import EXCERPT_CHARACTERS, excerpt, parse
from sft.data.shards import token_type
from sft.data.sources import RawRow
from sft.errors import DataError


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file: the unit of work, the same for any number of workers."""

    source: str
    file: str
    rows: Sequence[tuple[int, RawRow]]


@dataclass(frozen=True)
class Rejected:
    """A row, or a piece of one, that is not kept."""

    row: int
    piece: int | None
    reason: Reason
    detail: str
    excerpt: str


@dataclass
class ChunkResult:
    """The documents of a chunk in row order, laid end to end, and what was not kept."""

    source: str
    file: str
    num_rows: int
    num_skipped: int
    """Rows left out by the source's weight."""
    rejected: list[Rejected]
    ids: NDArray[Any]
    loss_mask: NDArray[np.uint8]
    documents: NDArray[Any]
    """One record of DOCUMENT_FIELDS per document."""
    num_truncated: int


DOCUMENT_FIELDS = np.dtype(
    [
        ("row", np.uint32),
        ("piece", np.uint16),
        ("digest", np.uint64),
        ("num_tokens", np.uint32),
        ("num_supervised", np.uint32),
    ]
)


class Worker:
    """Holds what every chunk needs: the tokenizer and the recipes' functions."""

    def __init__(self, config: BuildConfig, recipes: Path) -> None:
        self._config = config
        self._tokenizer = ChatTokenizer.load(config.tokenizer)
        self._convert = {name: load_converter(recipes / name) for name in config.sources}
        self._layouts = {name: layout(config, source) for name, source in config.sources.items()}
        self._id_type = token_type(self._tokenizer.num_ids)

    def run(self, chunk: Chunk) -> ChunkResult:
        """Turn the rows of a chunk into documents."""
        source = self._config.sources[chunk.source]
        rejected: list[Rejected] = []
        kept: list[tuple[int, Conversation]] = []
        num_skipped = 0
        for number, raw in chunk.rows:
            row = parse(raw)
            if not isinstance(row, Drop) and not _sampled(source.weight, row):
                num_skipped += 1
                continue
            outcome = row if isinstance(row, Drop) else self._conversation(chunk, number, row)
            if isinstance(outcome, Drop):
                rejected.append(Rejected(number, None, outcome.reason, outcome.detail, excerpt(raw)))
            else:
                kept.append((number, outcome))
        records, documents = self._documents(chunk.source, source, kept, rejected)
        return ChunkResult(
            chunk.source,
            chunk.file,
            len(chunk.rows),
            num_skipped,
            sorted(rejected, key=lambda item: (item.row, item.piece or 0)),
            _concatenate([document.ids for document in documents], self._id_type),
            _concatenate([document.loss_mask for document in documents], np.uint8),
            np.array(records, DOCUMENT_FIELDS),
            sum(document.truncated for document in documents),
        )

    def _conversation(self, chunk: Chunk, number: int, row: Mapping[str, Any]) -> Conversation | Drop:
        place = f"{chunk.file}, row {number}"
        try:
            conversation = self._convert[chunk.source](row)
        except Exception as error:
            raise DataError(
                f"source {chunk.source}: its recipe failed: {error!r}", on=place, hint="repair convert.py, with a case"
            ) from error
        if isinstance(conversation, Drop):
            return conversation
        if not isinstance(conversation, Conversation):
            raise DataError(
                f"source {chunk.source}: its recipe returned {conversation!r}",
                on=place,
                hint="convert must return a Conversation or a Drop",
            )
        return other_language(conversation, self._config.sources[chunk.source].language) or conversation

    def _documents(
        self,
        name: str,
        source: SourceConfig,
        kept: Sequence[tuple[int, Conversation]],
        rejected: list[Rejected],
    ) -> tuple[list[tuple[int, ...]], list[Encoded]]:
        """Encode and prove; what fails joins the rejected."""
        conversations = [conversation for _, conversation in kept]
        systems = [system_text(self._config, source, conversation) for conversation in conversations]
        layouts = [self._layouts[name]] * len(kept)
        pieces = [
            (row, number, conversation, piece)
            for (row, conversation), encoded in zip(
                kept, encode(conversations, systems, self._tokenizer, layouts), strict=True
            )
            for number, piece in enumerate(encoded)
        ]
        proofs = iter(self._proofs([piece for *_, piece in pieces if isinstance(piece, Encoded)], name))
        records: list[tuple[int, ...]] = []
        documents: list[Encoded] = []
        for row, number, conversation, piece in pieces:
            drop = piece if isinstance(piece, Drop) else next(proofs)
            if drop is not None:
                text = conversation.messages[0].text
                rejected.append(Rejected(row, number, drop.reason, drop.detail, text[:EXCERPT_CHARACTERS]))
            elif isinstance(piece, Encoded):
                records.append((row, number, digest(conversation), len(piece.ids), int(piece.loss_mask.sum())))
                documents.append(piece)
        return records, documents

    def _proofs(self, documents: Sequence[Encoded], name: str) -> list[Drop | None]:
        return first_violations(documents, self._tokenizer, [self._layouts[name]] * len(documents))


def layout(config: BuildConfig, source: SourceConfig) -> Layout:
    """How the documents of a source are laid out."""
    return Layout(config.seq_len, source.too_long, config.supervise, config.end_token)


def system_text(config: BuildConfig, source: SourceConfig, conversation: Conversation) -> str:
    """The system text of a conversation: the mixture's wish, else its own, else the recipe's."""
    if config.system == "card":
        return CARD_SYSTEM_PROMPT
    text = source.system if conversation.system is None else conversation.system
    return CARD_SYSTEM_PROMPT if text == "card" else text


def digest(conversation: Conversation) -> int:
    """64 bits that are equal for equal turns, whatever the system text."""
    turns = json.dumps([message.text for message in conversation.messages], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(turns.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _sampled(weight: float, row: Mapping[str, Any]) -> bool:
    """Whether the row is among the share of the weight: decided by its content, not by its place."""
    if weight == 1:
        return True
    content = json.dumps(row, sort_keys=True).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") < weight * 2**64


def _concatenate(parts: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate(parts, dtype=kind, casting="unsafe") if parts else np.zeros(0, kind)
