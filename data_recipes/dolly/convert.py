"""Dolly: an instruction, often about a passage, answered by a Databricks employee."""

import re
from collections.abc import Mapping

from sft.chat.conversation import Conversation, Drop, Reason, exchange, text_columns, wrong_schema

# Marks that Wikipedia prints right behind a word, as in Japan.[1], [a], [note 3], [nb 2]; after a space or a quote,
# or before a letter, brackets hold a word: "[I]t is". And its editors' remarks: [citation needed], [by whom?].
_REFERENCE_MARK = re.compile(
    r"(?<=[^\s\"'“‘(\[{])\[(?:\d{1,3}|[a-z]|[a-z]{1,6}\.? ?\d{1,3}|note [a-z]|edit)\](?!\w)"
    r"| ?\[(?:[a-z -]{3,30} needed|failed verification|not verified in body|citation not found|needs update|update"
    r"|dubious[^\]\n]{0,15}|user-generated source\?|(?:(?:by|according to|to) )?(?:whom?|when|where|which|why)\?)\]",
    re.IGNORECASE,
)


def convert(row: Mapping[str, object]) -> Conversation | Drop:
    """The instruction, then its passage on the next line whatever the category, answered by the response."""
    columns = text_columns(row, "instruction", "context", "response", "category")
    columns = columns or text_columns(row, "instruction", "input", "output", "category")
    if columns is None:
        return wrong_schema(row, "instruction, context, response (or input, output) and category as text")
    instruction, passage, response, _ = columns
    if not instruction:
        return Drop(Reason.EMPTY_USER, "no instruction")
    passage = _REFERENCE_MARK.sub("", passage).strip()
    return exchange(f"{instruction}\n{passage}" if passage else instruction, response)
