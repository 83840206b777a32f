"""Drop conversations in which the assistant refuses, or speaks of itself as a language model."""

import re

from sft.chat.conversation import Conversation, Drop, Reason

_MODEL = (
    r"(?:ai|llm|chat ?bot|language model|artificial intelligence|machine learning model|computer program)"
    r"(?: (?:ai|assistant|model|language model|chat ?bot|system|program))?"
)
# Not matched: "as an AI engineer, I …", and quoted speech, such as a story's dialogue.
_SELF = re.compile(
    r"(?<![\"“‘'])\b(?:"
    rf"(?:as|being) an? (?:[\w-]+ ){{0,3}}?{_MODEL}\b(?! \w+er\b)[^.!?\n\"“”]{{0,60}}\b(?:i|my|me)\b"
    rf"|i(?:'m| am)(?: just| only| merely| simply)? an? (?:[\w-]+ ){{0,3}}?{_MODEL}"
    r"(?=\W*$|\W*\n| ?[,.;:!?()—–-]| (?:and|so|but|that|which|who|trained|developed|designed|created|programmed|built"
    r"|made|by|without|with|fine-?tuned)\b)"
    r"|as an ai language model,"
    r"|my knowledge (?:cut-?off|is up to date|was last updated)"
    r"|my training(?: data)? (?:cut-?off|only|goes|does not|doesn't)"
    r"|(?:against|per|beyond) my programming\b(?! \w)"
    r")"
)
# Every match of _SELF holds one of these: searching for them first is many times as fast.
_TOPICS = (
    *(" ai ", " ai,", " ai.", "llm", "chatbot", "chat bot", "language model", "artificial intelligence"),
    *("machine learning model", "computer program", "my knowledge", "my training", "my programming"),
)

_CANNOT = (
    r"(?:i (?:cannot|can't|can not|am unable to|am not able to|won't|will not|must decline to|refuse to|have to decline"
    r"|am not (?:allowed|permitted|programmed|designed|comfortable)|don't feel comfortable|do not feel comfortable)"
    r"|i'm (?:unable to|not able to|not (?:allowed|permitted|programmed|designed|comfortable)))"
)
_APOLOGY = (
    r"(?:(?:i'm|i am|we are|we're)(?: \w+)? (?:sorry|afraid)|sorry|unfortunately|i apologi[sz]e|(?:my )?apologies)"
)
# Verbs that follow in a refusal; "I can't help but smile" is no refusal.
_TASK = (
    r"(?:fulfil|comply|assist|help\b(?! but| \w+ing)|provide|generate|create|write|produce|engage|support|condone"
    r"|promote|participate|discuss|answer|continue|offer|give|share|respond|complete|do (?:that|this|so)\b|recommend"
    r"|encourage|endorse|facilitate|tell you|accept|process|act as|role-?play|perform|execute|access|browse|view)"
)
_DECLINED = (
    r"(?:help(?: you)? with|help you\b|assist (?:you|with|in)\b|fulfil+ (?:th|your|such)|comply with"
    r"|answer (?:that|this|your)|provide (?:you|that|this|any|information|instructions)|engage in"
    r"|condone|do that\b|generate|promote)"
)
_REFUSAL = re.compile(
    rf"\W*(?:{_APOLOGY}[,.:;]*(?: but)? (?:[^.!?\n]{{0,60}}, )?{_CANNOT} (?:\w+ly )?(?:to )?{_TASK}"
    rf"|{_CANNOT} (?:\w+ly )?(?:to )?{_DECLINED}"
    r"|sorry, (?:the|this) (?:task|instruction|question)\b"
    r"|[^.!?\n]{0,80}\bcannot (?:be )?(?:complete|generate|perform|answer|do)\w*[^.!?\n]{0,60}"
    r"\b(?:with|by) (?:an?|the|this) (?:gpt |ai |language )*model\b)"
)
_LONGEST_REFUSAL_CHARACTERS = 400
"""A longer text that starts with an apology usually continues with an answer."""


def refusal(conversation: Conversation) -> Drop | None:
    """A Drop with the words of the assistant, if it refuses or speaks of itself as a language model."""
    for _, answer in conversation.exchanges:
        words = refusal_words(answer)
        if words is not None:
            return Drop(Reason.REFUSAL, words)
    return None


def refusal_words(text: str) -> str | None:
    """The words with which an answer refuses or calls its author a language model; None if there are none."""
    plain = text.replace("’", "'").lower()
    found = _SELF.search(plain) if any(topic in plain for topic in _TOPICS) else None
    if found is None and len(text) <= _LONGEST_REFUSAL_CHARACTERS:
        found = _REFUSAL.match(plain)
    return found and " ".join(found[0].split())
