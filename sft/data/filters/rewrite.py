"""Apply a function to every text of a conversation."""

from collections.abc import Callable

from sft.chat.conversation import Conversation, Drop, Message, from_turns


def rewrite(conversation: Conversation, change: Callable[[str], str]) -> Conversation | Drop:
    """The conversation with every text changed: the same object if no text differs, a Drop if a turn became blank."""
    turns = conversation.messages
    texts = [change(turn.text) for turn in turns]
    system = None if conversation.system is None else change(conversation.system)
    if system == conversation.system and all(text == turn.text for text, turn in zip(texts, turns, strict=True)):
        return conversation
    return from_turns([Message(turn.role, text) for text, turn in zip(texts, turns, strict=True)], system)
