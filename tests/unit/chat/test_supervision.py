"""The proof refuses every wrong mask and every forged token, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Drop, Message, Reason
from sft.chat.encode import Encoded, Layout, encode
from sft.chat.supervision import DocumentBatch, expected_mask, first_violations, structure_violations
from sft.chat.tokenizer import ChatTokenizer
from tests.support.turns import answer_spans

TALKS = {
    "one exchange": ("How many apples?", "Four apples are left."),
    "one token": ("a", "b"),
    "three exchanges": ("a", "The tide rises.", "And falls?", "Twice a day.", "你好 <|USER|>?", "<|ASSISTANT|> ü 🙂"),
}
LAYOUTS = {
    "published": Layout(1000),
    "no end": Layout(1000, end_token=False),
    "all": Layout(1000, supervise="all"),
    "all, no end": Layout(1000, supervise="all", end_token=False),
}


@dataclass(frozen=True)
class Case:
    """A valid document and what is needed to judge it."""

    document: Encoded
    layout: Layout
    tokenizer: ChatTokenizer

    def verdict(self, **changes: Any) -> Drop | None:
        """The proof's verdict on the document with some of its parts replaced."""
        changed = replace(self.document, **{name: np.array(part) for name, part in changes.items()})
        (found,) = first_violations([changed], self.tokenizer, self.layout)
        return found

    def reason(self, **changes: Any) -> Reason | None:
        """The verdict's reason."""
        found = self.verdict(**changes)
        return found.reason if found else None

    @property
    def ids(self) -> list[int]:
        return [int(token_id) for token_id in self.document.ids]

    @property
    def mask(self) -> list[int]:
        return [int(mask) for mask in self.document.loss_mask]


def encoded(tokenizer: ChatTokenizer, layout: Layout, *texts: str, system: str = "Answer shortly.") -> Encoded:
    talk = Conversation(tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)))
    ((document,),) = encode([talk], [system], tokenizer, layout)
    assert isinstance(document, Encoded)
    return document


@pytest.fixture(params=[(talk, layout) for talk in TALKS for layout in LAYOUTS], ids=lambda pair: ": ".join(pair))
def case(request: pytest.FixtureRequest, tokenizer: ChatTokenizer) -> Case:
    talk, layout = request.param
    return Case(encoded(tokenizer, LAYOUTS[layout], *TALKS[talk]), LAYOUTS[layout], tokenizer)


def alone(ids: NDArray[Any], loss_mask: NDArray[Any]) -> DocumentBatch:
    return DocumentBatch(ids, loss_mask, np.array([len(ids)]), np.zeros(1, bool))


def places(case: Case) -> Iterator[int]:
    yield from range(len(case.ids))


def ordinary(case: Case) -> list[int]:
    """Where no control token stands."""
    return [place for place in places(case) if not case.tokenizer.is_control[case.ids[place]]]


def with_token(ids: list[int], place: int, token_id: int) -> list[int]:
    return [*ids[:place], token_id, *ids[place + 1 :]]


def test_a_valid_document_passes(case: Case) -> None:
    assert case.verdict() is None


def test_every_flipped_mask_value_is_refused(case: Case) -> None:
    only_one = sum(case.mask) == 1
    for place in places(case):
        flipped = with_token(case.mask, place, 1 - case.mask[place])
        wanted = Reason.NO_SUPERVISED_TOKENS if only_one and case.mask[place] else Reason.WRONG_TURN_ENDS
        assert case.reason(loss_mask=flipped) is wanted, place


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_a_shifted_mask_is_refused(shift: int, case: Case) -> None:
    assert case.reason(loss_mask=np.roll(case.mask, shift)) in (Reason.WRONG_TURN_ENDS, Reason.NO_SUPERVISED_TOKENS)


def test_other_mask_values_than_0_and_1_are_refused(case: Case) -> None:
    assert case.reason(loss_mask=np.array(case.mask) * 2) is Reason.WRONG_TURN_ENDS


def test_a_document_without_loss_is_refused(case: Case) -> None:
    assert case.reason(loss_mask=np.zeros(len(case.ids), np.uint8)) is Reason.NO_SUPERVISED_TOKENS


def test_every_control_token_put_into_the_document_is_refused(case: Case) -> None:
    for control in case.tokenizer.control_ids:
        for place in range(len(case.ids) + 1):
            forged = [*case.ids[:place], control, *case.ids[place:]]
            for loss in (0, 1):
                mask = [*case.mask[:place], loss, *case.mask[place:]]
                assert case.reason(ids=forged, loss_mask=mask) is Reason.FORGED_CONTROL_TOKEN, (control, place)


def test_every_token_replaced_by_a_control_token_is_refused(case: Case) -> None:
    for control in case.tokenizer.control_ids:
        for place in places(case):
            if case.ids[place] != control:
                forged = with_token(case.ids, place, control)
                assert case.reason(ids=forged) is Reason.FORGED_CONTROL_TOKEN, (control, place)


def test_every_missing_control_token_is_refused(case: Case) -> None:
    for place in set(places(case)) - set(ordinary(case)):
        ids, mask = np.delete(case.ids, place), np.delete(case.mask, place)
        assert case.reason(ids=ids, loss_mask=mask) is Reason.FORGED_CONTROL_TOKEN, place


def test_every_changed_supervised_token_is_refused(case: Case) -> None:
    spans = answer_spans(case.document.ids, case.tokenizer)
    for place in (place for start, end in spans for place in range(start, end)):
        for other in ("x", "Q", "?"):
            ((token_id,),) = case.tokenizer.encode([other])
            if token_id != case.ids[place]:
                changed = with_token(case.ids, place, token_id)
                assert case.reason(ids=changed) is Reason.TEXT_NOT_REPRODUCED, place


def test_every_missing_or_doubled_answer_token_is_refused(case: Case) -> None:
    for start, end in answer_spans(case.document.ids, case.tokenizer):
        for place in range(start, end):
            for times in (0, 2):
                ids = [*case.ids[:place], *[case.ids[place]] * times, *case.ids[place + 1 :]]
                mask = [*case.mask[:place], *[1] * times, *case.mask[place + 1 :]]
                assert case.reason(ids=ids, loss_mask=mask) is not None


def test_a_document_that_says_something_else_than_its_row_is_refused(case: Case) -> None:
    for number in range(len(case.document.answers)):
        answers = list(case.document.answers)
        answers[number] += "!"
        (found,) = first_violations([replace(case.document, answers=tuple(answers))], case.tokenizer, case.layout)
        assert found is not None
        assert found.reason is Reason.TEXT_NOT_REPRODUCED
        assert f"answer {number}" in found.detail


def test_an_exchange_that_is_gone_is_refused(tokenizer: ChatTokenizer) -> None:
    whole = encoded(tokenizer, Layout(1000), "a", "b", "c", "d")
    part = encoded(tokenizer, Layout(1000), "a", "b")
    (found,) = first_violations([replace(part, answers=whole.answers)], tokenizer, Layout(1000))
    assert found is not None
    assert found.reason is Reason.TEXT_NOT_REPRODUCED


def test_an_exchange_that_the_row_does_not_have_is_refused(tokenizer: ChatTokenizer) -> None:
    whole = encoded(tokenizer, Layout(1000), "a", "b", "forged", "words")
    (found,) = first_violations([replace(whole, answers=("b",))], tokenizer, Layout(1000))
    assert found is not None


@pytest.mark.parametrize("empty", [[], [0]], ids=["nothing", "only an end"])
def test_a_document_without_tags_is_refused(empty: list[int], tokenizer: ChatTokenizer) -> None:
    ids, mask = np.array(empty, np.uint32), np.zeros(len(empty), np.uint8)
    ((number, found),) = structure_violations(alone(ids, mask), tokenizer, Layout(1000))
    assert number == 0
    assert found.reason is Reason.FORGED_CONTROL_TOKEN


# ------------------------------------------------------------------------------------------------ many at once


def test_each_document_of_a_batch_gets_its_own_verdict(tokenizer: ChatTokenizer) -> None:
    for layout in LAYOUTS.values():
        documents = [encoded(tokenizer, layout, *talk) for _ in range(3) for talk in TALKS.values()]
        documents[4] = replace(documents[4], answers=("something else",))
        documents[6] = replace(documents[6], loss_mask=documents[6].loss_mask[::-1])
        found = first_violations(documents, tokenizer, layout)
        reasons = {number: drop.reason for number, drop in enumerate(found) if drop}
        assert reasons == {4: Reason.TEXT_NOT_REPRODUCED, 6: Reason.WRONG_TURN_ENDS}


def test_an_empty_batch_has_no_verdicts(tokenizer: ChatTokenizer) -> None:
    assert first_violations([], tokenizer, Layout(1000)) == []


def test_a_refused_document_spoils_no_other_of_its_batch(tokenizer: ChatTokenizer) -> None:
    layout = Layout(1000)
    good = [encoded(tokenizer, layout, f"question {n}", f"answer {n}", "and?", f"more {n}") for n in range(3)]
    bad = replace(good[0], loss_mask=np.zeros_like(good[0].loss_mask))
    found = first_violations([bad, *good], tokenizer, layout)
    assert [drop.reason if drop else None for drop in found] == [Reason.NO_SUPERVISED_TOKENS, None, None, None]


# ------------------------------------------------------------------------------------------------ cut documents

LONG_ANSWER = "Grüße aus Köln 🙂🙂🙂 und e\u0301 noch viel mehr"


@pytest.mark.parametrize("seq_len", range(7, 59))
def test_a_document_cut_anywhere_in_its_answer_passes(seq_len: int, letters: ChatTokenizer) -> None:
    """Also inside of a character."""
    layout = Layout(seq_len, too_long="truncate")
    document = encoded(letters, layout, "Hi", LONG_ANSWER, system="S")
    assert (document.truncated, len(document.ids)) == (True, seq_len)
    assert first_violations([document], letters, layout) == [None]


def test_a_cut_document_with_other_words_is_refused(letters: ChatTokenizer) -> None:
    layout = Layout(14, too_long="truncate")
    document = encoded(letters, layout, "Hi", LONG_ANSWER, system="S")
    for place in range(6, 14):
        ids = document.ids.copy()
        ids[place] = letters.encode(["#"])[0][0]
        (found,) = first_violations([replace(document, ids=ids)], letters, layout)
        assert found is not None
        assert found.reason is Reason.TEXT_NOT_REPRODUCED


def test_an_end_after_a_cut_is_refused(letters: ChatTokenizer) -> None:
    layout = Layout(14, too_long="truncate")
    document = encoded(letters, layout, "Hi", LONG_ANSWER, system="S")
    ids = document.ids.copy()
    ids[-1] = letters.end_id
    (found,) = first_violations([replace(document, ids=ids)], letters, layout)
    assert found is not None
    assert found.reason is Reason.FORGED_CONTROL_TOKEN


# ------------------------------------------------------------------------------------------------ the pieces


def test_the_mask_follows_from_the_control_tokens_alone(case: Case) -> None:
    wanted: NDArray[np.uint8] = np.array(case.mask, np.uint8)
    found = expected_mask(alone(case.document.ids, case.document.loss_mask), case.tokenizer, case.layout)
    assert found.tolist() == wanted.tolist()


def test_answers_stand_between_their_tag_and_the_next_control_token(letters: ChatTokenizer) -> None:
    document = encoded(letters, Layout(100), "a", "bc", "d", "e", system="S")
    assert answer_spans(document.ids, letters) == [(5, 7), (10, 11)]
    assert letters.decode([document.ids[start:end] for start, end in answer_spans(document.ids, letters)]) == [
        "bc",
        "e",
    ]
