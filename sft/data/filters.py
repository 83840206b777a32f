"""Stages between recipe and tokeniser that look at a conversation's text."""

from sft.chat.conversation import Conversation, Drop, Reason

LANGUAGE_SAMPLE_CHARACTERS = 2000
"""Enough text to tell the language; identification is linear in it."""


def other_language(conversation: Conversation, wanted: str | None) -> Drop | None:
    """A Drop if the conversation is in another language than the wanted one."""
    if wanted is None:
        return None
    found = language(_sample(conversation))
    return None if found == wanted else Drop(Reason.LANGUAGE, f"{found}, expected {wanted}")


def language(text: str) -> str:
    """The ISO 639-1 code of the text's language, by a model that ships with py3langid."""
    import py3langid

    return str(py3langid.classify(text)[0])


def _sample(conversation: Conversation) -> str:
    """The start of every message, so that a long answer full of code does not drown the prose."""
    share = LANGUAGE_SAMPLE_CHARACTERS // len(conversation.messages)
    return "\n".join(message.text[: max(share, 100)] for message in conversation.messages)
