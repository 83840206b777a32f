"""Drop conversations that are shorter or longer than the limits."""

from sft.chat.conversation import Conversation, Drop, Reason


def wrong_length(conversation: Conversation, min_answer: int, max_total: int | None) -> Drop | None:
    """A Drop if the answers together, or all turns together, have too few or too many characters."""
    answers = sum(len(answer) for _, answer in conversation.exchanges)
    if answers < min_answer:
        return Drop(Reason.LENGTH, f"answers of {answers} characters, expected at least {min_answer}")
    total = sum(len(message.text) for message in conversation.messages)
    if max_total is not None and total > max_total:
        return Drop(Reason.LENGTH, f"{total} characters, expected at most {max_total}")
    return None
