"""Proof, document by document, that exactly the right tokens have loss.

The proof is independent of how `encode.py` made the ids. If a format's control tokens mark the turns, it reads the turn
starts from the ids alone, and the recorded turn starts must equal them. Otherwise it takes the recorded turn starts and
checks that the format's markers are before each of them. It processes all documents of a batch at once, because it must
not take more than a few per cent of the time of encoding them.

T = tokens of all documents, concatenated; N = documents; X = their texts (the system text and the turns); A = answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Drop, Reason
from sft.chat.encode import Encoded, Layout
from sft.chat.formats.base import ASSISTANT, END, SYSTEM, marker_kinds
from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import Turns, read_turns


@dataclass(frozen=True)
class DocumentBatch:
    """Concatenated documents. Shapes: ids_T, loss_mask_T; ends_N is where each document ends; is_cut_N: truncated.

    `turns` are the recorded ones, if there are any.
    """

    ids_T: NDArray[Any]
    loss_mask_T: NDArray[Any]
    ends_N: NDArray[np.int64]
    is_cut_N: NDArray[np.bool_]
    turns: Turns | None = None

    @property
    def starts_N(self) -> NDArray[np.int64]:
        return np.append(0, self.ends_N[:-1])

    def count(self, marks_T: NDArray[Any]) -> NDArray[np.int64]:
        """The number of marked tokens of each document."""
        total = np.append(0, np.cumsum(marks_T, dtype=np.int64))
        return np.asarray(total[self.ends_N] - total[self.starts_N])


def first_violations(documents: Sequence[Encoded], tokenizer: ChatTokenizer, layout: Layout) -> list[Drop | None]:
    """For each document, the first violation of the supervision contract, or None."""
    if not documents:
        return []
    ends_N = np.cumsum([len(document.ids) for document in documents], dtype=np.int64)
    batch = DocumentBatch(
        np.concatenate([document.ids for document in documents]),
        np.concatenate([document.loss_mask for document in documents]),
        ends_N,
        np.array([document.truncated for document in documents]),
        Turns.of([document.turn_starts for document in documents], ends_N),
    )
    texts = _Texts.of(batch, tokenizer, layout)
    verdicts: list[Drop | None] = [None] * len(documents)
    for number, drop in _text_violations(documents, batch, texts, tokenizer):
        verdicts[number] = drop
    for number, drop in _structure_violations(batch, texts, tokenizer, layout):
        verdicts[number] = drop
    return verdicts


def structure_violations(batch: DocumentBatch, tokenizer: ChatTokenizer, layout: Layout) -> Iterator[tuple[int, Drop]]:
    """The documents whose markers, loss mask or turn starts are wrong, each with its first violation."""
    return _structure_violations(batch, _Texts.of(batch, tokenizer, layout), tokenizer, layout)


def expected_mask(batch: DocumentBatch, tokenizer: ChatTokenizer, layout: Layout) -> NDArray[np.bool_]:
    """The loss mask that follows from the markers alone."""
    return _expected_mask(batch, _Texts.of(batch, tokenizer, layout), layout)


def _structure_violations(
    batch: DocumentBatch, texts: "_Texts", tokenizer: ChatTokenizer, layout: Layout
) -> Iterator[tuple[int, Drop]]:
    unsupervised = batch.count(batch.loss_mask_T) == 0
    wrong_mask = batch.count(batch.loss_mask_T != _expected_mask(batch, texts, layout)) > 0
    wrong_starts = np.zeros(len(batch.ends_N), bool)
    if batch.turns is not None:
        wrong_starts[batch.turns.differing(texts.turns)] = True
    for number in np.flatnonzero(texts.wrong_N | unsupervised | wrong_mask | wrong_starts).tolist():
        if texts.wrong_N[number]:
            ids = batch.ids_T[batch.starts_N[number] : batch.ends_N[number]]
            found = [tokenizer.name(token_id) for token_id in ids[tokenizer.is_control[ids]].tolist()]
            yield number, Drop(Reason.FORGED_CONTROL_TOKEN, f"control tokens {found}")
        elif unsupervised[number]:
            yield number, Drop(Reason.NO_SUPERVISED_TOKENS)
        elif wrong_mask[number]:
            yield number, Drop(Reason.WRONG_TURN_ENDS, "the loss mask is not the answers and their ends")
        else:
            yield number, Drop(Reason.WRONG_TURN_ENDS, "the turns do not start at the recorded places")


@dataclass(frozen=True)
class _Texts:
    """The texts of a batch, located by the markers of the format."""

    turns: Turns
    kind_X: NDArray[np.int64]
    """Kind of the marker before the text."""
    document_X: NDArray[np.int64]
    stop_X: NDArray[np.int64]
    """Where the text ends."""
    num_learnt_X: NDArray[np.int64]
    """If the text is an answer: how many tokens after it end it and have loss."""
    wrong_N: NDArray[np.bool_]
    """True for documents whose markers are not those of a system text, alternating turns and an end marker, if any.

    All other documents hold no control token outside their markers."""

    @classmethod
    def of(cls, batch: DocumentBatch, tokenizer: ChatTokenizer, layout: Layout) -> "_Texts":
        no_turns = Turns(np.zeros(0, np.int64), np.zeros(len(batch.ends_N), np.int64))
        turns = read_turns(batch.ids_T, batch.ends_N, tokenizer) or batch.turns or no_turns
        counts_N, starts_X = turns.counts_N, turns.starts_X
        first_N = np.cumsum(counts_N) - counts_N
        document_X = np.repeat(np.arange(len(counts_N)), counts_N)
        kind_X = marker_kinds(np.arange(len(starts_X)) - first_N[document_X])
        lengths = np.array([len(marker) for marker in tokenizer.markers])
        learnt = np.array([marker.num_learnt for marker in tokenizer.markers])
        begin_X = starts_X - lengths[kind_X]
        # The next text's marker follows every text; after a document's last text comes the end marker, if there is one.
        has_end_N = layout.end_token & ~batch.is_cut_N
        stop_X, num_learnt_X = np.append(begin_X[1:], 0), np.append(learnt[kind_X[1:]], 0)
        last_X, has_X = np.cumsum(counts_N)[counts_N > 0] - 1, counts_N > 0
        stop_X[last_X] = (batch.ends_N - has_end_N * lengths[END])[has_X]
        num_learnt_X[last_X] = (has_end_N * learnt[END])[has_X]
        right_X = (stop_X >= starts_X) & _stands(batch, begin_X, kind_X, document_X, tokenizer)
        right_X &= (kind_X != SYSTEM) | (begin_X == batch.starts_N[document_X])
        controls = np.array([int(tokenizer.is_control[marker.ids].sum()) for marker in tokenizer.markers])
        wanted_N = np.bincount(document_X, controls[kind_X], len(counts_N)) + has_end_N * controls[END]
        wrong_N = (counts_N < 3) | (counts_N % 2 == 0) | (batch.count(tokenizer.is_control[batch.ids_T]) != wanted_N)
        wrong_N[document_X[~right_X]] = True
        documents_N = np.arange(len(counts_N))
        end_N = batch.ends_N - lengths[END]
        wrong_N |= has_end_N & ~_stands(batch, end_N, np.full(len(counts_N), END), documents_N, tokenizer)
        return cls(turns, kind_X, document_X, stop_X, num_learnt_X, wrong_N)

    def answers(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """For every answer in a document that is not wrong: its start, its stop, the stop of its end, its document."""
        chosen = (self.kind_X == ASSISTANT) & ~self.wrong_N[self.document_X]
        stops_A = self.stop_X[chosen]
        return self.turns.starts_X[chosen], stops_A, stops_A + self.num_learnt_X[chosen], self.document_X[chosen]


def _stands(
    batch: DocumentBatch,
    begins: NDArray[np.int64],
    kinds: NDArray[np.int64],
    documents: NDArray[np.int64],
    tokenizer: ChatTokenizer,
) -> NDArray[np.bool_]:
    """For each of these places, whether a marker of this kind starts there and ends inside its document."""
    lengths = np.array([len(marker) for marker in tokenizer.markers])
    stands: NDArray[np.bool_] = (begins >= batch.starts_N[documents]) & (
        begins + lengths[kinds] <= batch.ends_N[documents]
    )
    for kind, marker in enumerate(tokenizer.markers):
        chosen = np.flatnonzero(stands & (kinds == kind))
        for number, token_id in enumerate(marker.ids.tolist()):
            stands[chosen] &= batch.ids_T[begins[chosen] + number] == token_id
    return stands


def _expected_mask(batch: DocumentBatch, texts: _Texts, layout: Layout) -> NDArray[np.bool_]:
    if layout.supervise == "all":
        mask_T = np.ones(len(batch.ids_T), bool)
        mask_T[batch.starts_N] = False
        return mask_T
    starts_A, _, ends_A, _ = texts.answers()
    return _inside(starts_A, ends_A, len(batch.ids_T))


def _inside(starts_A: NDArray[np.int64], stops_A: NDArray[np.int64], num_tokens: int) -> NDArray[np.bool_]:
    """True for the tokens of these spans, which do not overlap."""
    step_T = np.zeros(num_tokens + 1, np.int8)
    np.add.at(step_T, starts_A, 1)
    np.subtract.at(step_T, stops_A, 1)
    return np.cumsum(step_T[:-1], dtype=np.int8).astype(bool)


def _text_violations(
    documents: Sequence[Encoded], batch: DocumentBatch, texts: _Texts, tokenizer: ChatTokenizer
) -> Iterator[tuple[int, Drop]]:
    """The documents whose supervised tokens do not decode to the assistant texts."""
    starts_A, stops_A, _, document_A = texts.answers()
    counts_N = np.bincount(document_A, minlength=len(documents)).tolist()
    ids = batch.ids_T[_inside(starts_A, stops_A, len(batch.ids_T))]
    # All answers are decoded in one call: a call per answer would double the time.
    spelt = tokenizer.spell(ids)
    num_bytes = np.append(0, np.cumsum(tokenizer.num_bytes[ids], dtype=np.int64))
    edges = num_bytes[np.append(0, np.cumsum(stops_A - starts_A))].tolist()
    place, lead = 0, tokenizer.format.turn_lead
    for number, document in enumerate(documents):
        first, place = place, place + counts_N[number]
        if counts_N[number] != len(document.answers):
            detail = f"{counts_N[number]} answers, the conversation has {len(document.answers)}"
            yield number, Drop(Reason.TEXT_NOT_REPRODUCED, detail)
            continue
        for turn, answer in enumerate(lead + text for text in document.answers):
            found = spelt[edges[first + turn] : edges[first + turn + 1]]
            if found != answer.encode("utf-8", "surrogatepass") and not _spells(found, answer, document, tokenizer):
                detail = f"the supervised tokens of answer {turn} spell something else"
                yield number, Drop(Reason.TEXT_NOT_REPRODUCED, detail)


def _spells(found: bytes, answer: str, document: Encoded, tokenizer: ChatTokenizer) -> bool:
    """Whether the bytes are the text as the tokenizer normalises it; for a truncated document, its start."""
    wanted = tokenizer.normalise(answer).encode("utf-8", "surrogatepass")
    return wanted.startswith(found) if document.truncated else found == wanted
