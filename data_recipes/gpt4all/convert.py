"""GPT4All: a prompt and GPT-3.5-Turbo's response; in the J set a response may hold further turns."""

import re
from collections.abc import Mapping

from sft.chat.conversation import Conversation, Drop, Message, from_turns, text_columns, wrong_schema

# The J set ends a turn by "</s>" and a blank line. `</s>` alone is also HTML's end of struck-out text.
_TURN_END = re.compile(r"</s>[ \t]*\n\s*\n|</s>\Z")
_PUBLISHED_TURN_END = "</s> \n \n"


def convert(
    row: Mapping[str, object], *, published_turn_ends: bool = False, card_system_for_several_turns: bool = False
) -> Conversation | Drop:
    """The prompt, the response, and every further complete exchange in the response."""
    columns = text_columns(row, "prompt", "response", "source")
    if columns is None:
        return wrong_schema(row, "prompt, response and source as text")
    prompt, response, _ = columns
    answer, *rest = _split(response, published_turn_ends)
    turns = [Message("user", prompt), Message("assistant", answer.strip())]
    for piece in rest:
        user, _, assistant = (part.strip() for part in piece.strip().partition("\n"))
        # A piece that is not a complete exchange ends the conversation; the exchanges before it are kept.
        if not (user and assistant):
            break
        turns += [Message("user", user), Message("assistant", assistant)]
    return from_turns(turns, "card" if card_system_for_several_turns and len(turns) > 2 else None)


def _split(response: str, published_turn_ends: bool) -> list[str]:
    if published_turn_ends:
        return response.split(_PUBLISHED_TURN_END)
    return [response] if "<s>" in response else _TURN_END.split(response)
