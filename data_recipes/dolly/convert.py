"""Dolly: an instruction, often about a passage, answered by a Databricks employee."""

import re
from collections.abc import Mapping

from sft.chat.conversation import Conversation, Drop, Message, Reason, from_turns, text_columns, wrong_schema

# Marks that Wikipedia prints right after a word, as in Japan.[1], [a], [note 3], [nb 2]; after a space or a quote,
# or before a letter, brackets hold a word: "[I]t is". And its editors' remarks: [citation needed], [by whom?].
_REFERENCE_MARK = re.compile(
    r"(?<=[^\s\"'“‘(\[{])\[(?:\d{1,3}|[a-z]|[a-z]{1,6}\.? ?\d{1,3}|note [a-z]|edit)\](?!\w)"
    r"| ?\[(?:[a-z -]{3,30} needed|failed verification|not verified in body|citation not found|needs update|update"
    r"|dubious[^\]\n]{0,15}|user-generated source\?|(?:(?:by|according to|to) )?(?:whom?|when|where|which|why)\?)\]",
    re.IGNORECASE,
)

# One task line per category, as in the published preparation, in our own words. Three categories share one line.
_QUESTION = "Answer the user's question."
_SYSTEM_BY_CATEGORY = {
    "brainstorming": "Gather ideas together with the user.",
    "classification": "Sort what the user names into the classes that the user asks for.",
    "closed_qa": _QUESTION,
    "creative_writing": "Write what the user asks for, with imagination.",
    "general_qa": _QUESTION,
    "information_extraction": "Find in the user's passage what the user asks for.",
    "open_qa": _QUESTION,
    "summarization": "Sum up the user's passage in the way that the user asks for.",
}


def convert(
    row: Mapping[str, object],
    *,
    passage_only_for_summaries_and_extraction: bool = False,
    category_systems: bool = False,
    keep_reference_marks: bool = False,
) -> Conversation | Drop:
    """The instruction, then its passage on the next line in every category, answered by the response."""
    columns = text_columns(row, "instruction", "context", "response", "category")
    columns = columns or text_columns(row, "instruction", "input", "output", "category")
    if columns is None:
        return wrong_schema(row, "instruction, context, response (or input, output) and category as text")
    instruction, passage, response, category = columns
    if not instruction:
        return Drop(Reason.EMPTY_USER, "no instruction")
    if "[" in passage and not keep_reference_marks:
        passage = _REFERENCE_MARK.sub("", passage).strip()
    if passage_only_for_summaries_and_extraction and category not in ("summarization", "information_extraction"):
        passage = ""
    turns = [Message("user", f"{instruction}\n{passage}" if passage else instruction), Message("assistant", response)]
    return from_turns(turns, _SYSTEM_BY_CATEGORY.get(category) if category_systems else None)
