"""Drop conversations in another language than the wanted one. The only file that imports py3langid."""

from sft.chat.conversation import Conversation, Drop, Reason

SAMPLE_BYTES = 1000
"""Enough text to identify the language; the time is linear in it."""

# Words that make up a third of English prose and are rarer in other languages and in code.
_ENGLISH_WORDS = """
    the of to and that is it you with are be have which can your by they their has what how would should there my these
    who about could its we our but she his been were than also this i'm don't it's
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_ENGLISH_WORDS_PER_100_CHARACTERS = 2


def other_language(conversation: Conversation, wanted: str) -> Drop | None:
    """A Drop if the conversation is in another language than the wanted one (ISO 639-1)."""
    text = _sample(conversation)
    if wanted == "en" and _is_plain_english(text):
        return None
    found = language(text)
    return None if found == wanted else Drop(Reason.LANGUAGE, f"reads as {found!r}, expected {wanted!r}")


def language(text: str) -> str:
    """The ISO 639-1 code of the text's language, according to the model that comes with py3langid."""
    import py3langid

    return str(py3langid.classify(text)[0])


def _is_plain_english(text: str) -> bool:
    """Whether common words alone show that the text is English: about ten times as fast as the model."""
    num_wide = len(text.encode("utf-8", "surrogatepass")) - len(text)
    common = sum(map(_ENGLISH.__contains__, text.lower().split()))
    return 100 * common >= _ENGLISH_WORDS_PER_100_CHARACTERS * len(text) and 10 * num_wide <= len(text)


def _sample(conversation: Conversation) -> str:
    """The start of the first and the last messages, so that a long answer full of code does not outweigh the prose."""
    messages = conversation.messages
    if len(messages) > 6:
        messages = messages[:3] + messages[-3:]
    share = SAMPLE_BYTES // len(messages)
    return "\n".join([_start(message.text[:share], share) for message in messages])


def _start(text: str, num_bytes: int) -> str:
    # A Chinese character is three bytes and carries as much information as three Latin ones.
    return text if text.isascii() else text.encode("utf-8", "surrogatepass")[:num_bytes].decode("utf-8", "ignore")
