"""Which documents of a corpus are packed, how often and in which split: duplicates, held-out conversations, mixing.

Decided once for the whole corpus, in its order, so that the result does not depend on who made which unit.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Reason
from sft.chat.tokenizer import ChatTokenizer
from sft.config import BuildConfig
from sft.data.corpus import Corpus
from sft.data.minhash import shingles
from sft.data.near_duplicates import near_duplicates
from sft.data.rows import EXCERPT_CHARACTERS
from sft.data.split import held_out, repeats
from sft.errors import DataError


@dataclass(frozen=True)
class Repeated:
    """A conversation that is dropped because it repeats another one."""

    conversation: int
    twin: int
    reason: Reason
    similarity: float


@dataclass(frozen=True)
class Selection:
    """What becomes of every document.

    Shapes: one entry per document of the corpus.
    """

    uses: NDArray[np.uint16]
    """How often the document is packed; 0 if it is not."""
    held_out: NDArray[np.bool_]
    repeated: list[Repeated]
    num_unused: NDArray[np.int64]
    """Conversations of each source that are left out by its number of conversations."""


def select(corpus: Corpus, config: BuildConfig, tokenizer: ChatTokenizer) -> Selection:
    """Decide what is packed.

    Raises: DataError if a source has fewer conversations than it is to train on.
    """
    settings = list(config.sources.values())
    source = corpus.source[corpus.first_documents]
    records = corpus.records[corpus.first_documents]
    repeated = _duplicates(records["digest"], source, [item.duplicates == "drop" for item in settings])
    alive = np.ones(len(source), bool)
    alive[[item.conversation for item in repeated]] = False
    near = _near_duplicates(corpus, source, [item.near_duplicates for item in settings], alive, tokenizer)
    alive[[item.conversation for item in near]] = False
    uses = alive.astype(np.uint16)
    valid = np.zeros(len(source), bool)
    valid[alive] = held_out(
        records["group"][alive], source[alive], config.valid_share, config.valid_conversations, config.seed
    )
    num_unused = np.zeros(len(settings), np.int64)
    for number, item in enumerate(settings):
        mine = np.flatnonzero(alive & ~valid & (source == number))
        if item.num_conversations is not None and item.num_conversations > len(mine):
            name = list(config.sources)[number]
            raise DataError(
                f"source {name}: num_conversations={item.num_conversations}, but {len(mine)} are left to train on",
                hint=f"set sources.{name}.num_conversations={len(mine)}, or sources.{name}.epochs to repeat them",
            )
        uses[mine] = repeats(records["group"][mine], item.epochs, item.num_conversations, config.seed)
        num_unused[number] = (uses[mine] == 0).sum()
    repeated = sorted([*repeated, *near], key=lambda item: item.conversation)
    return Selection(corpus.per_document(uses), corpus.per_document(valid), repeated, num_unused)


def repeated_rows(corpus: Corpus, selection: Selection, tokenizer: ChatTokenizer) -> Iterator[dict[str, Any]]:
    """The quarantine record of every conversation that repeats another one."""
    for item in selection.repeated:
        place, twin = corpus.place(item.conversation), corpus.place(item.twin)
        near = f"{item.similarity:.3f} like" if item.reason is Reason.NEAR_DUPLICATE else "same turns as"
        yield {
            **asdict(place),
            "piece": None,
            "reason": item.reason.value,
            "detail": f"{near} {twin.source}: {twin.file}, row {twin.row}",
            "excerpt": _excerpt(corpus, item.conversation, tokenizer),
            "twin": {
                **asdict(twin),
                "similarity": round(item.similarity, 4),
                "excerpt": _excerpt(corpus, item.twin, tokenizer),
            },
        }


def _duplicates(digests: NDArray[np.uint64], source: NDArray[np.int16], drops: list[bool]) -> list[Repeated]:
    """Every conversation of a source that drops them, if an earlier one has the same digest."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    twins = first[inverse]
    again = np.flatnonzero((twins != np.arange(len(digests))) & np.array(drops, bool)[source])
    return [
        Repeated(number, twin, Reason.DUPLICATE, 1.0)
        for number, twin in zip(again.tolist(), twins[again].tolist(), strict=True)
    ]


def _near_duplicates(
    corpus: Corpus,
    source: NDArray[np.int16],
    thresholds: list[float | None],
    alive: NDArray[np.bool_],
    tokenizer: ChatTokenizer,
) -> list[Repeated]:
    if not any(thresholds):
        return []
    per_source = np.array([np.nan if value is None else value for value in thresholds], np.float32)
    found = near_duplicates(
        len(source),
        corpus.bands,
        per_source[source],
        lambda conversation: shingles(corpus.turns(conversation, tokenizer)),
        alive,
    )
    return [Repeated(item.conversation, item.twin, Reason.NEAR_DUPLICATE, item.similarity) for item in found]


def _excerpt(corpus: Corpus, conversation: int, tokenizer: ChatTokenizer) -> str:
    return corpus.opening(conversation, EXCERPT_CHARACTERS, tokenizer)[:EXCERPT_CHARACTERS]
