"""Which documents of a corpus are packed, how often and in which split: duplicates, held-out conversations, mixing.

Decided once for the whole corpus, in its order, so that the result does not depend on which process made which chunk.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Reason
from sft.chat.tokenizer import ChatTokenizer
from sft.config.data import BuildConfig
from sft.data.build.corpus import Corpus
from sft.data.build.split import held_out, repeats
from sft.data.dedup.minhash import shingles
from sft.data.dedup.near_duplicates import near_duplicates
from sft.data.sources.rows import EXCERPT_CHARACTERS
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
    """How often each document is packed, and in which split.

    Shapes: one entry per document of the corpus.
    """

    uses: NDArray[np.uint16]
    """How often the document is packed; 0 if it is not."""
    held_out: NDArray[np.bool_]
    repeated: list[Repeated]
    num_unused: NDArray[np.int64]
    """Conversations of each source that its num_conversations leaves out."""


def select(corpus: Corpus, config: BuildConfig, tokenizer: ChatTokenizer) -> Selection:
    """Decide which documents are packed.

    A conversation that num_conversations leaves out must not make its duplicate in a later source be dropped. So the
    limits are applied source by source, each to what the earlier ones left, and the unlimited sources come last.

    Raises: DataError if a source has too few conversations to train on or to hold out, or none is left of it.
    """
    settings = list(config.sources.values())
    source = corpus.source[corpus.first_documents]
    none = np.zeros(len(source), bool)
    choice = _Choice(none.astype(np.uint16), none, [])
    frozen = none.copy()
    num_unused = np.zeros(len(settings), np.int64)
    for number in [number for number, item in enumerate(settings) if item.num_conversations is not None]:
        choice, unused = _choose(corpus, config, tokenizer, choice, frozen, limited=number)
        frozen |= source == number
        num_unused[number] = unused
    choice, _ = _choose(corpus, config, tokenizer, choice, frozen)
    _require_enough(config, source, choice)
    return Selection(
        corpus.per_document(choice.uses), corpus.per_document(choice.held_out), choice.repeated, num_unused
    )


@dataclass(frozen=True)
class _Choice:
    """How often each conversation is used, and in which split. Shapes: one entry per conversation."""

    uses: NDArray[np.uint16]
    held_out: NDArray[np.bool_]
    repeated: list[Repeated]


def _choose(
    corpus: Corpus,
    config: BuildConfig,
    tokenizer: ChatTokenizer,
    before: _Choice,
    frozen: NDArray[np.bool_],
    limited: int | None = None,
) -> tuple[_Choice, int]:
    """Drop duplicates, choose the held-out conversations, and decide how often the others are used.

    Conversations that are `frozen` keep their choice of `before`. The second result is the number of conversations that
    the limit of the `limited` source leaves out.
    """
    settings = list(config.sources.values())
    source = corpus.source[corpus.first_documents]
    records = corpus.records[corpus.first_documents]
    alive = ~frozen | (before.uses > 0)
    may_drop = ~frozen & np.array([item.duplicates == "drop" for item in settings], bool)[source]
    repeated = _duplicates(records["digest"], alive, may_drop)
    alive[[item.conversation for item in repeated]] = False
    thresholds = np.array([np.nan if it.near_duplicates is None else it.near_duplicates for it in settings], np.float32)
    near = _near_duplicates(corpus, np.where(frozen, np.nan, thresholds[source]), alive, tokenizer)
    alive[[item.conversation for item in near]] = False
    valid = _held_out(records["group"], source, alive, config, before, frozen)
    uses = np.where(frozen, before.uses, alive).astype(np.uint16)
    num_unused = 0
    for number, item in enumerate(settings):
        mine = np.flatnonzero(alive & ~valid & ~frozen & (source == number))
        count = item.num_conversations if number == limited else None
        if count is not None and count > len(mine):
            name = list(config.sources)[number]
            raise DataError(
                f"source {name}: num_conversations={count}, but {len(mine)} are left to train on",
                hint=f"set sources.{name}.num_conversations={len(mine)}, or sources.{name}.epochs to repeat them",
            )
        uses[mine] = repeats(records["group"][mine], item.epochs, count, config.seed)
        num_unused += int((uses[mine] == 0).sum())
    earlier = [item for item in before.repeated if frozen[item.conversation]]
    repeated = sorted([*earlier, *repeated, *near], key=lambda item: item.conversation)
    return _Choice(uses, valid, repeated), num_unused


def _held_out(
    groups: NDArray[np.uint64],
    source: NDArray[np.int16],
    alive: NDArray[np.bool_],
    config: BuildConfig,
    before: _Choice,
    frozen: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """The conversations of the validation split; those that open like a frozen conversation are on its side."""
    used = frozen & (before.uses > 0)
    trained, kept_out = (np.isin(groups, groups[used & side]) for side in (~before.held_out, before.held_out))
    free = alive & ~trained
    valid = np.zeros(len(groups), bool)
    valid[free] = held_out(groups[free], source[free], config.valid_share, config.valid_conversations, config.seed)
    return np.asarray(alive & (valid | kept_out))


def _require_enough(config: BuildConfig, source: NDArray[np.int16], choice: _Choice) -> None:
    """Make sure that every source has a conversation left, and enough to hold out.

    Raises: DataError naming the source.
    """
    wanted = config.valid_conversations or 0
    for number, name in enumerate(config.sources):
        mine = (source == number) & (choice.uses > 0)
        num_held_out = int((mine & choice.held_out).sum())
        if (source == number).any() and not mine.any():
            hint = f"switch it off: sources.{name}.enabled=false"
            raise DataError(f"source {name}: every conversation repeats one of another source", hint=hint)
        if mine.any() and num_held_out < wanted:
            raise DataError(
                f"source {name}: valid_conversations={wanted}, but of its {mine.sum()} at most {num_held_out} "
                "can be held out",
                hint="hold out fewer, or a share: valid_share=…",
            )


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
    """The conversations to drop because an earlier one has the same digest."""
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
