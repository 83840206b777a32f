"""Only conversations of the wanted length pass."""

from collections.abc import Callable

import pytest

from sft.chat.conversation import Conversation, Drop, Reason
from sft.data.filters.length import wrong_length

TEXTS = ("q" * 100, "a" * 10, "q" * 100, "a" * 5)


@pytest.mark.parametrize(
    ("min_answer", "max_total", "detail"),
    [
        (0, None, None),
        (15, None, None),
        (15, 215, None),
        (16, None, "answers of 15 characters, expected at least 16"),
        (0, 214, "215 characters, expected at most 214"),
    ],
)
def test_answers_have_a_least_and_the_whole_a_greatest_length(
    talk: Callable[..., Conversation], min_answer: int, max_total: int | None, detail: str | None
) -> None:
    expected = None if detail is None else Drop(Reason.LENGTH, detail)
    assert wrong_length(talk(*TEXTS), min_answer, max_total) == expected
