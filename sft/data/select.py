"""Which documents of a corpus are packed, how often and in which split: duplicates, held-out conversations, mixing.

Decided once for the whole corpus, in its order, so that the result does not depend on who made which unit.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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

    Raises: DataError if a source has fewer conversations than it is to train on, or none is left of it.
    """
    settings = list(config.sources.values())
    source = corpus.source[corpus.first_documents]
    choice = _choose(corpus, config, tokenizer, np.ones(len(source), bool))
    num_unused = np.bincount(source[choice.unused], minlength=len(settings))
    if choice.unused.any():
        # What a limit leaves out must not push out what repeats it in other sources: decide again without it.
        limited = np.array([item.num_conversations is not None for item in settings])[source]
        again = _choose(corpus, config, tokenizer, ~choice.unused, settled=choice.uses > 0, frozen=limited)
        repeated = [item for item in choice.repeated if limited[item.conversation]]
        repeated += [item for item in again.repeated if not limited[item.conversation]]
        choice = replace(again, repeated=sorted(repeated, key=lambda item: item.conversation))
    for number, name in enumerate(config.sources):
        if (source == number).any() and not choice.uses[source == number].any():
            hint = f"switch it off: sources.{name}.enabled=false"
            raise DataError(f"source {name}: every conversation repeats one of another source", hint=hint)
    return Selection(
        corpus.per_document(choice.uses), corpus.per_document(choice.held_out), choice.repeated, num_unused
    )


def _require_enough(config: BuildConfig, source: NDArray[np.int16], valid: NDArray[np.bool_]) -> None:
    """Make sure that the number to hold out is there, and something to train on beside it.

    Raises: DataError if a source has fewer.
    """
    if config.valid_conversations is None:
        return
    for number, name in enumerate(config.sources):
        count, num_held_out = int((source == number).sum()), int((valid & (source == number)).sum())
        if count and num_held_out < config.valid_conversations:
            raise DataError(
                f"source {name}: valid_conversations={config.valid_conversations}, but of its {count} at most "
                f"{num_held_out} can be held out",
                hint="hold out fewer, or a share: valid_share=…",
            )


@dataclass(frozen=True)
class _Choice:
    """What becomes of every conversation. Shapes: one entry per conversation."""

    uses: NDArray[np.uint16]
    held_out: NDArray[np.bool_]
    unused: NDArray[np.bool_]
    """Left out by its source's number of conversations."""
    repeated: list[Repeated]


def _choose(
    corpus: Corpus,
    config: BuildConfig,
    tokenizer: ChatTokenizer,
    considered: NDArray[np.bool_],
    settled: NDArray[np.bool_] | None = None,
    frozen: NDArray[np.bool_] | None = None,
) -> _Choice:
    """Drop what repeats another considered conversation, hold out, and count how often the rest is used.

    Those of `frozen` sources are used if they are `settled` and not otherwise: their limit was applied before.
    """
    settings = list(config.sources.values())
    source = corpus.source[corpus.first_documents]
    records = corpus.records[corpus.first_documents]
    is_open = np.ones(len(source), bool) if frozen is None else ~frozen
    alive = considered.copy() if settled is None else considered & (is_open | settled)
    may_drop = is_open & np.array([item.duplicates == "drop" for item in settings], bool)[source]
    repeated = _duplicates(records["digest"], alive, may_drop)
    alive[[item.conversation for item in repeated]] = False
    thresholds = np.array([np.nan if it.near_duplicates is None else it.near_duplicates for it in settings], np.float32)
    near = _near_duplicates(corpus, np.where(is_open, thresholds[source], np.nan), alive, tokenizer)
    alive[[item.conversation for item in near]] = False
    valid = np.zeros(len(source), bool)
    valid[alive] = held_out(
        records["group"][alive], source[alive], config.valid_share, config.valid_conversations, config.seed
    )
    _require_enough(config, source[alive], valid[alive])
    uses = alive.astype(np.uint16)
    unused = np.zeros(len(source), bool)
    for number, item in enumerate(settings):
        mine = np.flatnonzero(alive & ~valid & (source == number))
        count = item.num_conversations if frozen is None else None
        if count is not None and count > len(mine):
            name = list(config.sources)[number]
            raise DataError(
                f"source {name}: num_conversations={count}, but {len(mine)} are left to train on",
                hint=f"set sources.{name}.num_conversations={len(mine)}, or sources.{name}.epochs to repeat them",
            )
        uses[mine] = repeats(records["group"][mine], item.epochs, count, config.seed)
        unused[mine[uses[mine] == 0]] = True
    return _Choice(uses, valid, unused, sorted([*repeated, *near], key=lambda item: item.conversation))


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


def _duplicates(digests: NDArray[np.uint64], alive: NDArray[np.bool_], may_drop: NDArray[np.bool_]) -> list[Repeated]:
    """Every conversation that may be dropped, if an earlier one has the same digest."""
    members = np.flatnonzero(alive)
    _, first, inverse = np.unique(digests[members], return_index=True, return_inverse=True)
    twins = members[first[inverse]]
    again = (twins != members) & may_drop[members]
    return [
        Repeated(number, twin, Reason.DUPLICATE, 1.0)
        for number, twin in zip(members[again].tolist(), twins[again].tolist(), strict=True)
    ]


def _near_duplicates(
    corpus: Corpus, thresholds: NDArray[np.float32], alive: NDArray[np.bool_], tokenizer: ChatTokenizer
) -> list[Repeated]:
    if np.isnan(thresholds).all():
        return []
    found = near_duplicates(
        len(thresholds),
        corpus.bands,
        thresholds,
        lambda conversation: shingles(corpus.turns(conversation, tokenizer)),
        alive,
    )
    return [Repeated(item.conversation, item.twin, Reason.NEAR_DUPLICATE, item.similarity) for item in found]


def _excerpt(corpus: Corpus, conversation: int, tokenizer: ChatTokenizer) -> str:
    return corpus.opening(conversation, EXCERPT_CHARACTERS, tokenizer)[:EXCERPT_CHARACTERS]
