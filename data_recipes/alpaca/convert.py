"""Alpaca: one instruction with an optional input, answered by text-davinci-003."""

import re
from collections.abc import Mapping

from sft.chat.conversation import Conversation, Drop, Reason, exchange, text_columns, wrong_schema

# An input that only says that there is none: "No input", "<noinput>.", "N/A", "No input required."
_NO_INPUT = re.compile(
    r"\W*(?:no\W?inputs?(?:\W+(?:is\W+)?(?:required|needed|necessary|provided|given|available|specified))?"
    r"|n/?a|none|nil|not\W(?:applicable|required|needed))\W*",
    re.IGNORECASE,
)

# The template's tag on a line of its own, below or above a real input, at its end with the number of the next task:
# "<noinput>\n11". Inside a line the tag marks a gap that the answer fills: "The boy <noinput> the ball".
_NO_INPUT_LINE = re.compile(
    r"^[^\w\n]{0,3}no[^\w\n]?inpute?[^\w\n]{0,3}(?:\s?\d{1,3}\Z)?$", re.MULTILINE | re.IGNORECASE
)

# The answer's own template tag, alone or followed by an excuse; or the bare words as the whole answer.
_NO_OUTPUT_TAG = re.compile(r"\W{0,2}[<\[(]\s*no\s?(?:in|out)put\b", re.IGNORECASE)
_NO_OUTPUT = re.compile(
    r"\W*(?:no\W?(?:in|out)put(?:\W+(?:is\W+)?(?:required|needed|necessary|expected|possible|available))?"
    r"|n/a)\W*(?:$|[,(.]|as GPT\b|this type\b)",
    re.IGNORECASE,
)
_PICTURE = (
    r"image|picture|photo(?:graph)?s?|pic|drawing|painting|sketch|figure|screenshot|diagram|gif|logo|poster|chart|graph"
    r"|infographic|visuali[sz]ation|word cloud|animation|rendering|design|video|audio|sound|song|melody|music(?:al)?"
)
# An answer that is only a placeholder for something that text cannot hold: "[Insert Bar Chart]", "<logo>".
_STAND_IN = re.compile(
    rf"[<\[(][\w ,.:/'-]{{0,200}}\b(?:{_PICTURE}|attach\w*)\b[\w ,.:/'-]{{0,200}}[>\])]\.?", re.IGNORECASE
)

# The generator continued with its next task: "## \n14. Instruction: Describe the main ..."
_NEXT_TASK = re.compile(r"^[#\s]{0,9}\d{1,3}\.\s{0,9}Instruction\s?:", re.MULTILINE | re.IGNORECASE)

_ATTACHED = re.compile(
    rf"[<\[(][^<>\[\]()\n]{{0,200}}\b(?:{_PICTURE}|file|link|attach\w*)\b[^<>\[\]()\n]{{0,200}}[>\])]\.?"
    r"|attached\b[^\n]{0,60}|see (?:the )?attach[^\n]{0,60}",
    re.IGNORECASE,
)
_PAGE = re.compile(
    r"(?:https?://|www\.)[^\s/]{1,100}/\S+|!\[[^\]\n]{0,200}\]\([^)\n]{0,500}\)|<img [^>\n]{0,500}>", re.IGNORECASE
)
_LABEL = re.compile(r"\b(?:article|link|url|source|image|picture|photo|website|page|video|input)\b", re.IGNORECASE)
_UNSEEN = re.compile(
    rf"\b(?:{_PICTURE}|articles?|blog|post|page|paper|study|story|news|document|pdf|report|review|trailer|speech"
    r"|website|site|painting|art\w*|listen|read|summar\w*|shape|flag|describe|identify|classify)\b",
    re.IGNORECASE,
)
_ABOUT_LINKS = re.compile(
    r"\b(?:html|code|script|program|python|regex|parse|https?|request|uri|domain|hyperlink|cite|citation|bookmark)\b",
    re.IGNORECASE,
)


def convert(row: Mapping[str, object], *, keep_dirt: bool = False) -> Conversation | Drop:
    """The instruction, then its input on the next line, answered by the output."""
    columns = text_columns(row, "instruction", "input", "output")
    if columns is None:
        return wrong_schema(row, "instruction, input and output as text")
    instruction, given, output = columns
    if not instruction:
        return Drop(Reason.EMPTY_USER, "no instruction")
    dirt = None
    if not keep_dirt:
        given = "" if _NO_INPUT.fullmatch(given) else _NO_INPUT_LINE.sub("", given).strip()
        dirt = _dirt(instruction, given, output)
    return dirt or exchange(f"{instruction}\n{given}" if given else instruction, output)


def _dirt(instruction: str, given: str, output: str) -> Drop | None:
    if _NO_OUTPUT_TAG.match(output) or _NO_OUTPUT.match(output) or _STAND_IN.fullmatch(output):
        return Drop(Reason.PLACEHOLDER_ANSWER, output[:80])
    texts = (instruction, given, output)
    # Most rows do not hold the word; searching for a word is ten times as fast as for a regex.
    if "instruction" in " ".join(texts).lower() and any(map(_NEXT_TASK.search, texts)):
        return Drop(Reason.MERGED_INSTRUCTIONS, "a numbered instruction inside a text")
    if _ATTACHED.fullmatch(given) or _only_links(instruction, given):
        return Drop(Reason.ATTACHMENT_MISSING, given[:80])
    return None


def _only_links(instruction: str, given: str) -> bool:
    """Whether the task is about a page or a picture of which the row holds only the address."""
    place = (given or instruction).lower()
    if not ("://" in place or "www." in place or "![" in place or "<img " in place):
        return False
    if not _PAGE.search(given or instruction) or _ABOUT_LINKS.search(_PAGE.sub("", instruction)):
        return False
    rest = _LABEL.sub("", _PAGE.sub("", given))
    return not re.search(r"\w{3}", rest) and bool(_UNSEEN.search(instruction))
