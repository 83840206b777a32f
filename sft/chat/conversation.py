"""The conversation type: every recipe produces it from a raw row, and the encoder turns it into tokens."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Role = Literal["user", "assistant"]


class Reason(StrEnum):
    """Why a row, or a piece of one, is not in the shards."""

    # damage: the file does not have the form that the recipe expects
    INVALID_JSON = "invalid_json"
    INVALID_UTF8 = "invalid_utf8"
    WRONG_SCHEMA = "wrong_schema"
    # dirt: the row is readable, but not a usable conversation
    ROW_TOO_LARGE = "row_too_large"
    EMPTY_USER = "empty_user"
    EMPTY_ASSISTANT = "empty_assistant"
    NO_EXCHANGE = "no_exchange"
    NOT_ALTERNATING = "not_alternating"
    PLACEHOLDER_ANSWER = "placeholder_answer"
    ATTACHMENT_MISSING = "attachment_missing"
    MERGED_INSTRUCTIONS = "merged_instructions"
    SERVICE_MESSAGE = "service_message"
    LANGUAGE = "language"
    # choice: dropped by a stage of the build that a setting switched on
    LENGTH = "length"
    REFUSAL = "refusal"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    CONTAMINATED = "contaminated"
    # encoding: the tokens would violate the text and supervision contract
    TOO_LONG = "too_long"
    NO_SUPERVISED_TOKENS = "no_supervised_tokens"
    FORGED_CONTROL_TOKEN = "forged_control_token"
    TEXT_NOT_REPRODUCED = "text_not_reproduced"
    WRONG_TURN_ENDS = "wrong_turn_ends"


DAMAGE = frozenset({Reason.INVALID_JSON, Reason.INVALID_UTF8, Reason.WRONG_SCHEMA})


@dataclass(frozen=True, slots=True)
class Message:
    """The text of one turn, without tags."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Drop:
    """The reason why a row is not kept."""

    reason: Reason
    detail: str = ""


class NotAConversationError(ValueError):
    """Turns that do not alternate from user to assistant."""

    def __init__(self, problem: Drop) -> None:
        self.problem = problem
        super().__init__(f"not a conversation: {problem.reason} {problem.detail}".rstrip())


@dataclass(frozen=True, slots=True)
class Conversation:
    """Alternating user and assistant turns, the first by the user and the last by the assistant.

    Invariant: an even number of messages, none blank. `system` replaces the recipe's system text.
    """

    messages: tuple[Message, ...]
    system: str | None = None

    def __post_init__(self) -> None:
        problem = _first_problem(self.messages)
        if problem is not None:
            raise NotAConversationError(problem)

    @property
    def exchanges(self) -> tuple[tuple[str, str], ...]:
        """The turns as (user text, assistant text) pairs."""
        texts = [message.text for message in self.messages]
        return tuple(zip(texts[::2], texts[1::2], strict=True))


def exchange(user: str, assistant: str) -> Conversation | Drop:
    """A conversation of one question and one answer, or the reason why it is not valid."""
    return from_turns([Message("user", user), Message("assistant", assistant)])


def from_turns(turns: Iterable[Message], system: str | None = None) -> Conversation | Drop:
    """A conversation from the given turns, or the first reason why they are not a valid one."""
    try:
        return Conversation(tuple(turns), system)
    except NotAConversationError as error:
        return error.problem


# C0 controls except tab and newline, and DEL. In UTF-8 these bytes are never part of another character.
_CONTROLS = bytes({*range(0x20), 0x7F} - {ord("\t"), ord("\n")})


def clean_text(text: str) -> str:
    """The text with plain newlines, without control characters, lone surrogates and outer whitespace."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # "ignore" removes lone surrogates, which JSON can hold but UTF-8 cannot. On bytes this is ten times as fast as a
    # regex.
    return text.encode("utf-8", "ignore").translate(None, _CONTROLS).decode().strip()


def text_columns(row: Mapping[str, object], *names: str) -> tuple[str, ...] | None:
    """The cleaned texts of the named columns, or None if one of them is missing or is not text."""
    texts = [clean_text(value) for name in names if isinstance(value := row.get(name), str)]
    return tuple(texts) if len(texts) == len(names) else None


def wrong_schema(row: Mapping[str, object], expected: str) -> Drop:
    """The Drop of a row whose columns are not those of its source."""
    found = ", ".join(f"{name}: {type(value).__name__}" for name, value in row.items())
    detail = f"expected {expected}; found {clean_text(found)[:300] or 'no columns'}"
    return Drop(Reason.WRONG_SCHEMA, detail)


def _first_problem(messages: tuple[Message, ...]) -> Drop | None:
    if len(messages) < 2:
        return Drop(Reason.NO_EXCHANGE, f"{len(messages)} turns")
    for number, message in enumerate(messages):
        expected: Role = "user" if number % 2 == 0 else "assistant"
        if message.role != expected:
            return Drop(Reason.NOT_ALTERNATING, f"turn {number} is by {message.role}, expected {expected}")
        if not message.text.strip():
            blank = Reason.EMPTY_USER if expected == "user" else Reason.EMPTY_ASSISTANT
            return Drop(blank, f"turn {number}")
    if len(messages) % 2:
        return Drop(Reason.NOT_ALTERNATING, "the last turn is by the user")
    return None
