"""Proof, document by document, that exactly the right tokens carry loss.

The proof reads only ids and mask, and knows nothing of how `template.py` made them. It looks at all documents of a
batch at once, since it must not cost more than a few per cent of encoding them.

T = tokens of all documents end to end, D = documents, C = control tokens, A = answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Drop, Reason
from sft.chat.encode import Encoded, Layout
from sft.chat.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class DocumentBatch:
    """Documents end to end. Shapes: ids_T, loss_mask_T; ends_D is where each document ends; is_cut_D: truncated."""

    ids_T: NDArray[Any]
    loss_mask_T: NDArray[Any]
    ends_D: NDArray[np.int64]
    is_cut_D: NDArray[np.bool_]

    @property
    def starts_D(self) -> NDArray[np.int64]:
        return np.append(0, self.ends_D[:-1])

    def count(self, marks_T: NDArray[Any]) -> NDArray[np.int64]:
        """How many tokens of each document are marked."""
        total = np.append(0, np.cumsum(marks_T, dtype=np.int64))
        return np.asarray(total[self.ends_D] - total[self.starts_D])


def first_violations(documents: Sequence[Encoded], tokenizer: ChatTokenizer, layout: Layout) -> list[Drop | None]:
    """For each document, the first clause of the supervision contract that it breaks, or None."""
    if not documents:
        return []
    batch = DocumentBatch(
        np.concatenate([document.ids for document in documents]),
        np.concatenate([document.loss_mask for document in documents]),
        np.cumsum([len(document.ids) for document in documents], dtype=np.int64),
        np.array([document.truncated for document in documents]),
    )
    verdicts: list[Drop | None] = [None] * len(documents)
    for number, drop in _text_violations(documents, batch, tokenizer):
        verdicts[number] = drop
    for number, drop in structure_violations(batch, tokenizer, layout):
        verdicts[number] = drop
    return verdicts


def structure_violations(batch: DocumentBatch, tokenizer: ChatTokenizer, layout: Layout) -> Iterator[tuple[int, Drop]]:
    """The documents whose tags or mask are wrong, each with the first thing that is."""
    controls = _Controls.of(batch, tokenizer)
    wrong_tags = controls.wrong_documents(batch, tokenizer, layout)
    unsupervised = batch.count(batch.loss_mask_T) == 0
    wrong_mask = batch.count(batch.loss_mask_T != expected_mask(batch, tokenizer, layout)) > 0
    for number in np.flatnonzero(wrong_tags | unsupervised | wrong_mask).tolist():
        if wrong_tags[number]:
            found = batch.ids_T[controls.place_C[controls.document_C == number]].tolist()
            yield number, Drop(Reason.FORGED_CONTROL_TOKEN, f"control tokens {[tokenizer.name(i) for i in found]}")
        elif unsupervised[number]:
            yield number, Drop(Reason.NO_SUPERVISED_TOKENS)
        else:
            yield number, Drop(Reason.WRONG_TURN_ENDS, "the loss mask is not the answers and their ends")


def answer_spans(ids_T: NDArray[Any], tokenizer: ChatTokenizer) -> list[tuple[int, int]]:
    """Where each assistant text of one document stands: behind its tag, up to the next control token or the end."""
    ends_D = np.array([len(ids_T)], np.int64)
    controls = _Controls.of(DocumentBatch(ids_T, ids_T, ends_D, np.zeros(1, bool)), tokenizer)
    starts_A, stops_A, _ = controls.answers(ends_D, tokenizer)
    return list(zip(starts_A.tolist(), stops_A.tolist(), strict=True))


@dataclass(frozen=True)
class _Controls:
    """The control tokens of a batch: where they stand, which they are, in which document."""

    place_C: NDArray[np.int64]
    id_C: NDArray[Any]
    document_C: NDArray[np.int64]

    @classmethod
    def of(cls, batch: DocumentBatch, tokenizer: ChatTokenizer) -> "_Controls":
        place_C = np.flatnonzero(tokenizer.is_control[batch.ids_T])
        return cls(place_C, batch.ids_T[place_C], np.searchsorted(batch.ends_D, place_C, side="right"))

    def answers(
        self, ends_D: NDArray[np.int64], tokenizer: ChatTokenizer
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """First token, first token behind, and document of every assistant text."""
        following_C = np.append(self.place_C[1:], ends_D[-1])
        stop_C = np.minimum(following_C, ends_D[self.document_C])
        opens_C = self.id_C == tokenizer.assistant_id
        return self.place_C[opens_C] + 1, stop_C[opens_C], self.document_C[opens_C]

    def wrong_documents(self, batch: DocumentBatch, tokenizer: ChatTokenizer, layout: Layout) -> NDArray[np.bool_]:
        """The documents that are not a system block, user and assistant in turn, and the end token if there is one."""
        first_C = np.append(True, self.document_C[1:] != self.document_C[:-1])
        last_C = np.append(first_C[1:], True)
        before_C = np.where(first_C, -1, np.append(-1, self.id_C[:-1]))
        user, assistant, end = tokenizer.user_id, tokenizer.assistant_id, tokenizer.end_id
        follows = {-1: tokenizer.system_id, tokenizer.system_id: user, user: assistant}
        right_C = np.isin(self.id_C, (user, end)) & (before_C == assistant)
        for before, following in follows.items():
            right_C |= (before_C == before) & (self.id_C == following)
        right_C &= ~first_C | (self.place_C == batch.starts_D[self.document_C])
        has_end_C = layout.end_token & ~batch.is_cut_D[self.document_C]
        is_end_C = (self.id_C == end) & (self.place_C == batch.ends_D[self.document_C] - 1)
        right_C &= ~last_C | np.where(has_end_C, is_end_C, self.id_C == assistant)
        wrong_D = np.ones(len(batch.ends_D), bool)
        wrong_D[self.document_C] = False
        wrong_D[self.document_C[~right_C]] = True
        return wrong_D


def expected_mask(batch: DocumentBatch, tokenizer: ChatTokenizer, layout: Layout) -> NDArray[np.bool_]:
    """The loss mask that follows from the control ids alone."""
    if layout.supervise == "all":
        mask_T = np.ones(len(batch.ids_T), bool)
        mask_T[batch.starts_D] = False
        return mask_T
    starts_A, stops_A, document_A = _Controls.of(batch, tokenizer).answers(batch.ends_D, tokenizer)
    stops_A = np.minimum(stops_A + 1, batch.ends_D[document_A])  # the end token or next tag included
    return _inside(starts_A, stops_A, len(batch.ids_T))


def _inside(starts_A: NDArray[np.int64], stops_A: NDArray[np.int64], num_tokens: int) -> NDArray[np.bool_]:
    """True for the tokens of these spans, which do not overlap."""
    step_T = np.zeros(num_tokens + 1, np.int8)
    np.add.at(step_T, starts_A, 1)
    np.subtract.at(step_T, stops_A, 1)
    return np.cumsum(step_T[:-1], dtype=np.int8).astype(bool)


def _text_violations(
    documents: Sequence[Encoded], batch: DocumentBatch, tokenizer: ChatTokenizer
) -> Iterator[tuple[int, Drop]]:
    """The documents whose supervised tokens do not spell the assistant texts."""
    controls = _Controls.of(batch, tokenizer)
    starts_A, stops_A, document_A = controls.answers(batch.ends_D, tokenizer)
    counts_D = np.bincount(document_A, minlength=len(documents)).tolist()
    ids = batch.ids_T[_inside(starts_A, stops_A, len(batch.ids_T))]
    # Everything is spelt in one go: a call per answer would cost as much again.
    spelt = tokenizer.spell(ids)
    num_bytes = np.append(0, np.cumsum(tokenizer.num_bytes[ids], dtype=np.int64))
    edges = num_bytes[np.append(0, np.cumsum(stops_A - starts_A))].tolist()
    place = 0
    for number, document in enumerate(documents):
        first, place = place, place + counts_D[number]
        if counts_D[number] != len(document.answers):
            detail = f"{counts_D[number]} answers, the conversation has {len(document.answers)}"
            yield number, Drop(Reason.TEXT_NOT_REPRODUCED, detail)
            continue
        for turn, answer in enumerate(document.answers):
            found = spelt[edges[first + turn] : edges[first + turn + 1]]
            if found != answer.encode("utf-8", "surrogatepass") and not _spells(found, answer, document, tokenizer):
                detail = f"the supervised tokens of answer {turn} spell something else"
                yield number, Drop(Reason.TEXT_NOT_REPRODUCED, detail)


def _spells(found: bytes, answer: str, document: Encoded, tokenizer: ChatTokenizer) -> bool:
    """Whether the bytes are the text as the tokenizer normalises it; of a truncated document, its start."""
    wanted = tokenizer.normalise(answer).encode("utf-8", "surrogatepass")
    return wanted.startswith(found) if document.truncated else found == wanted
