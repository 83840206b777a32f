"""Proof, document by document, that exactly the right tokens carry loss.

The proof reads only ids and mask, and knows nothing of how `template.py` made them.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Drop, Reason
from sft.chat.template import Encoded, Layout
from sft.chat.tokenizer import ChatTokenizer


def first_violations(
    documents: Sequence[Encoded], tokenizer: ChatTokenizer, layouts: Sequence[Layout]
) -> list[Drop | None]:
    """For each document, the first clause of the supervision contract that it breaks, or None."""
    spans = [answer_spans(document.ids, tokenizer) for document in documents]
    runs = [document.ids[a:b] for document, places in zip(documents, spans, strict=True) for a, b in places]
    decoded = iter(tokenizer.decode(runs))
    texts = [[next(decoded) for _ in places] for places in spans]
    return [
        structure_violation(document.ids, document.loss_mask, tokenizer, layout, truncated=document.truncated)
        or _text_violation(document, found, tokenizer)
        for document, layout, found in zip(documents, layouts, texts, strict=True)
    ]


def structure_violation(
    ids: NDArray[Any], loss_mask: NDArray[Any], tokenizer: ChatTokenizer, layout: Layout, *, truncated: bool = False
) -> Drop | None:
    """What is wrong with the tags and the mask of one document, or None."""
    controls = ids[tokenizer.is_control[ids]].tolist()
    turns = (len(controls) - 1) // 2
    ends = [tokenizer.end_id] if layout.end_token and not truncated else []
    expected = [tokenizer.system_id, *[tokenizer.user_id, tokenizer.assistant_id] * turns, *ends]
    if controls != expected or ids[0] != tokenizer.system_id:
        return Drop(Reason.FORGED_CONTROL_TOKEN, f"control tokens {controls}, expected {expected}")
    if not loss_mask.any():
        return Drop(Reason.NO_SUPERVISED_TOKENS)
    if not np.array_equal(loss_mask, expected_mask(ids, tokenizer, layout)):
        return Drop(Reason.WRONG_TURN_ENDS, "the loss mask is not the answers and their ends")
    return None


def expected_mask(ids: NDArray[Any], tokenizer: ChatTokenizer, layout: Layout) -> NDArray[np.uint8]:
    """The loss mask that follows from the control ids alone."""
    mask = np.zeros(len(ids), np.uint8)
    if layout.supervise == "all":
        mask[1:] = 1
    else:
        for start, end in answer_spans(ids, tokenizer):
            mask[start : end + 1] = 1  # the end token or next tag included
    return mask


def answer_spans(ids: NDArray[Any], tokenizer: ChatTokenizer) -> list[tuple[int, int]]:
    """Where each assistant text stands: behind its tag, up to the next control token or the end."""
    controls = np.flatnonzero(tokenizer.is_control[ids]).tolist()
    return [
        (start + 1, end)
        for start, end in itertools.pairwise([*controls, len(ids)])
        if ids[start] == tokenizer.assistant_id
    ]


def _text_violation(document: Encoded, found: Sequence[str], tokenizer: ChatTokenizer) -> Drop | None:
    if len(found) != len(document.answers):
        return Drop(Reason.TEXT_NOT_REPRODUCED, f"{len(found)} answers, the conversation has {len(document.answers)}")
    for number, (spelt, answer) in enumerate(zip(found, document.answers, strict=True)):
        if spelt != answer and not _spells(spelt, tokenizer.normalise(answer), cut=document.truncated):
            return Drop(Reason.TEXT_NOT_REPRODUCED, f"the supervised tokens of answer {number} spell something else")
    return None


def _spells(found: str, wanted: str, *, cut: bool) -> bool:
    # A cut may fall inside a character, which then decodes to replacement characters.
    return wanted.startswith(found.rstrip("\ufffd")) if cut else found == wanted
