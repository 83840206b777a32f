"""Conversations in one line."""

from collections.abc import Callable

import pytest

from sft.chat.conversation import Conversation, Message


@pytest.fixture
def talk() -> Callable[..., Conversation]:
    """Makes a conversation from texts, the first by the user."""

    def make(*texts: str, system: str | None = None) -> Conversation:
        turns = (Message("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))
        return Conversation(tuple(turns), system)

    return make
