"""Equal conversations have equal digests, and those that open alike are of one group."""

import hashlib
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Message
from sft.data.digests import content_digests, digest, group_digest


def talk(*texts: str, system: str | None = None) -> Conversation:
    messages = tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts))
    return Conversation(messages, system)


def of_sha256(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)


def test_the_digest_is_that_of_the_turns() -> None:
    assert digest(talk("a", "b")) == digest(talk("a", "b", system="S"))
    others = [("a", "c"), ("b", "a"), ("a", "b", "c", "d"), ('a", "b', "c"), ("a ", "b"), ("A", "b"), ("a1:b", "c")]
    assert len({digest(talk(*texts)) for texts in [("a", "b"), *others]}) == 8
    assert digest(talk("a", "b")) == of_sha256("1:a1:b")
    assert digest(talk("ä", "你好")) == of_sha256("2:ä6:你好")


def test_two_spellings_of_one_letter_are_one_turn() -> None:
    composed, decomposed = "Gr\u00fc\u00dfe", "Gru\u0308\u00dfe"
    assert digest(talk(composed, "b")) == digest(talk(decomposed, "b"))
    assert digest(talk("a", composed)) == digest(talk("a", decomposed))
    assert group_digest(talk(composed, "b")) == group_digest(talk(decomposed, "b")) == group_digest(talk("GRÜSSE", "b"))


ALIKE = ["How are you?", "how ARE you?", " How\n are\tyou? ", "How\u00a0are\u2003you?", "HOW ARE YOU?"]
OTHERS = ["Howare you?", "How are you", "How are you??", "Who are you?", "how are you? how are you?"]


@pytest.mark.parametrize("opening", ALIKE)
def test_a_group_sees_neither_case_nor_white_space_nor_what_follows(opening: str) -> None:
    found = group_digest(talk(opening, "Fine.", "And now?", "Fine.", system="S"))
    assert found == group_digest(talk("How are you?", "b")) == of_sha256("how are you?")


def test_other_questions_are_other_groups() -> None:
    found = [group_digest(talk(opening, "b")) for opening in [ALIKE[0], *OTHERS]]
    assert all(one != other for one, other in combinations(found, 2))


def test_half_a_character_has_a_digest() -> None:
    """No converted row holds one, but a digest must not be what fails."""
    half, other = (talk(text, "b") for text in ("a\ud83d", "a\ud83e"))
    assert digest(half) != digest(other)
    assert group_digest(half) != group_digest(other)


def test_a_question_of_any_length_is_told_by_its_start() -> None:
    question = "Who is meant by this?\n" + "word " * 300
    assert group_digest(talk(question + "a passage", "b")) == group_digest(talk(question + "another", "b"))
    assert group_digest(talk("W" + question, "b")) != group_digest(talk(question, "b"))


@pytest.mark.parametrize("kind", ["u2", "u4"])
def test_the_content_of_a_document_is_its_tokens_and_its_mask_whatever_lies_beside_it(kind: str) -> None:
    ids: NDArray[Any] = np.array([7, 8, 9, 7, 8, 9, 7, 8], kind)
    mask = np.array([0, 0, 1, 0, 0, 1, 0, 1], np.uint8)
    found = content_digests(ids, mask, np.array([3, 6, 8]))
    spelled = hashlib.sha256(np.array([7, 8, 9], "<u4").tobytes() + bytes([0, 0, 1])).hexdigest()
    assert found[0] == found[1] == int(spelled[:16], 16)
    assert found[2] == content_digests(ids[:2], mask[1:3], np.array([2]))[0]
    assert len({*found.tolist(), *content_digests(ids[:3], 1 - mask[:3], np.array([3])).tolist()}) == 3


def test_no_documents_have_no_content() -> None:
    nothing = np.zeros(0, np.int64)
    assert content_digests(nothing, nothing, nothing).tolist() == []
