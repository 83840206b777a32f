"""Anthropic's HH: a conversation whose last reply people preferred to another one."""

import re
from collections.abc import Mapping

from sft.chat.conversation import Conversation, Drop, Message, Role, from_turns, text_columns, wrong_schema

# A tag opens a turn only after a blank line and before white space; messages hold blank lines of their own.
_TAG = re.compile(r"\n\n(Human|Assistant):(?=\s|\Z)")
_OPEN_REPLY = re.compile(r"\n\nAssistant:\Z")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def convert(row: Mapping[str, object]) -> Conversation | Drop:
    """The conversation with the preferred reply as its last turn."""
    dahoas = text_columns(row, "prompt", "response", "chosen", "rejected")
    anthropic = text_columns(row, "chosen", "rejected")
    if dahoas is not None:
        prompt, response, *_ = dahoas
        # The prompt ends with the tag of the reply that the response holds; some copies lack it.
        text = f"{_OPEN_REPLY.sub('', prompt)}\n\nAssistant: {response}"
    elif anthropic is not None:
        text = anthropic[0]
    else:
        return wrong_schema(row, "chosen and rejected, or prompt, response, chosen and rejected, as text")
    before, *parts = _TAG.split(f"\n\n{text}")
    if before.strip() or not parts:
        return wrong_schema(row, "a text that starts with a tag, Human: or Assistant:")
    turns = [Message(_ROLES[tag], body.strip()) for tag, body in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1].role == "user":
        turns.pop()  # nobody answered it
    return from_turns(turns)
