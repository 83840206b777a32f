"""Anthropic's HH: a conversation with the preferred of two last replies."""

import re
from collections.abc import Mapping

from sft.chat.conversation import Conversation, Drop, Message, Role, clean_text, from_turns, text_columns, wrong_schema

# A tag starts a turn only after a blank line and before white space; messages may hold blank lines too.
_TAG = re.compile(r"\n\n(Human|Assistant):(?=\s|\Z)")
_OPEN_REPLY = re.compile(r"\n\nAssistant:\Z")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
# The assistant's own reply under the label "Human:"; with a second label in it, the reply holds both parts.
_STRAY_TAG = re.compile(r"\A(?:Human:\s*+)++(?!.*\b(?:Human|Assistant):)", re.DOTALL)


def convert(row: Mapping[str, object], *, split_on_blank_lines: bool = False) -> Conversation | Drop:
    """The conversation with the preferred reply as its last turn."""
    if not all(isinstance(row.get(name), str) for name in ("chosen", "rejected")):
        return wrong_schema(row, "chosen and rejected, or prompt, response, chosen and rejected, as text")
    dahoas = text_columns(row, "prompt", "response")
    if dahoas is not None:
        prompt, response = dahoas
        # The prompt ends with the tag of the reply that the response holds; some copies lack it.
        text = f"{_OPEN_REPLY.sub('', prompt)}\n\nAssistant: {response}"
    else:
        text = clean_text(str(row["chosen"]))
        head, tag, response = text.rpartition("\n\nAssistant:")
        prompt = head + tag
    if split_on_blank_lines:
        return from_turns(_turns_by_parity(prompt, response))
    before, *parts = _TAG.split(f"\n\n{text}")
    if before.strip() or not parts:
        return wrong_schema(row, "a text that starts with a tag, Human: or Assistant:")
    turns = [_turn(_ROLES[tag], body.strip()) for tag, body in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1].role == "user":
        turns.pop()  # it has no answer
    return from_turns(turns)


def _turn(role: Role, text: str) -> Message:
    is_stray = role == "assistant" and text.startswith("Human:")
    return Message(role, _STRAY_TAG.sub("", text) if is_stray else text)


def _turns_by_parity(prompt: str, response: str) -> list[Message]:
    """The published split: the text between two blank lines is a turn, and the speakers alternate."""
    pieces = prompt.strip().split("\n\n")
    turns = [
        Message("assistant", piece.replace("Assistant: ", "").strip())
        if number % 2
        else Message("user", piece.replace("Human: ", "").strip())
        for number, piece in enumerate(pieces)
    ]
    # Only a last piece by the assistant is replaced by the response; any other loses it and stays unanswered.
    last = turns.pop()
    return turns if last.role == "user" else [*turns, Message("assistant", response.strip())]
