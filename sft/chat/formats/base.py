"""The definition of a chat format: the markers between the texts of a conversation, and which of them have loss.

    <system marker> S <first user> U <assistant> A <next user> U <assistant> A <end marker>

The texts are the system text, then the turns by user and assistant. A format is data: the code that encodes, verifies,
shows, exports or generates reads it and names no tag itself.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYSTEM, FIRST_USER, ASSISTANT, NEXT_USER, END = range(5)
"""The kinds of markers, each named after the text that follows it; the last one ends the document."""
NUM_MARKERS = 5


@dataclass(frozen=True)
class Control:
    """A control token by its name: it is inserted by id, so that no text can forge it."""

    name: str


Part = Control | str
"""A part of a marker: a control token, or literal text, which is encoded on its own."""


@dataclass(frozen=True)
class Marker:
    """The tokens between two texts."""

    learnt: tuple[Part, ...] = ()
    """The first parts: they end the answer before the marker and have loss."""
    unlearnt: tuple[Part, ...] = ()
    """The parts after those, without loss."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.learnt + self.unlearnt

    @property
    def text(self) -> str:
        """The marker as text."""
        return "".join(part.name if isinstance(part, Control) else part for part in self.parts)


@dataclass(frozen=True)
class MarkerIds:
    """A marker as ids of one tokenizer."""

    ids: NDArray[np.uint32]
    num_learnt: int
    """How many of the first ids have loss."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ChatFormat:
    """One way to write conversations as text for a model."""

    name: str
    end_token: str
    """The end-of-document token."""
    pad_token: str
    tags: tuple[str, ...]
    """Control tokens that are added to a tokenizer that lacks them."""
    published_ids: Mapping[str, int]
    """The ids of all control tokens in GPT-NeoX-20B's tokenizer."""
    default_system: str
    """System text of chats without one of their own; recipes call it `card`."""
    system: Marker
    first_user: Marker
    assistant: Marker
    next_user: Marker
    """Before every user turn but the first, so after an answer."""
    end: Marker
    stop_tokens: tuple[str, ...]
    """The tokens that end an answer, in the order of the model card."""
    template: str
    """Jinja chat template, with the placeholder DEFAULT_SYSTEM for the default system text."""
    stop_strings: tuple[str, ...] = ()
    """Strings that end an answer as well."""
    turn_lead: str = ""
    """Text prepended to every turn's text before encoding, such as the space with which a word's token starts."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """All tokens to which no text may be encoded."""
        return (self.end_token, self.pad_token, *self.tags)

    @property
    def markers(self) -> tuple[Marker, ...]:
        """The markers in the order of their kinds."""
        return (self.system, self.first_user, self.assistant, self.next_user, self.end)

    @property
    def opening_tokens(self) -> tuple[str, ...] | None:
        """The control tokens after which a text starts, if every text follows one and no other token; None otherwise.

        With them, the turns can be read from the ids alone.
        """
        *openings, end = self.markers
        last = [marker.parts[-1] if marker.parts else "" for marker in openings]
        others = {*end.parts, *(part for marker in openings for part in marker.parts[:-1])}
        tokens = dict.fromkeys(part.name for part in last if isinstance(part, Control) and part not in others)
        return tuple(tokens) if all(isinstance(part, Control) and part.name in tokens for part in last) else None

    @property
    def sketch(self) -> str:
        """The markers with dots in place of the texts, for display."""
        lead = self.turn_lead
        return f"{self.system.text}…{self.first_user.text}{lead}…{self.assistant.text}{lead}…"

    def chat_template(self, system: str) -> str:
        """The Jinja template, with this default system text."""
        # A JSON string is a valid Jinja string as well, with any quotes, newlines and braces in it.
        return self.template.replace("DEFAULT_SYSTEM", json.dumps(system, ensure_ascii=False))


def marker_kind(number: int) -> int:
    """The kind of the marker before text `number` of a document: the system text is number 0, the first question 1."""
    return number if number < 2 else (NEXT_USER if number % 2 else ASSISTANT)


def marker_kinds(numbers: NDArray[Any]) -> NDArray[Any]:
    """The kinds of the markers before many texts."""
    return np.where(numbers < 2, numbers, np.where(numbers % 2, NEXT_USER, ASSISTANT))


def marker_ids(marker: Marker, ids_of: Callable[[Part], Sequence[int]]) -> MarkerIds:
    """A marker as ids, given a function from a part to its ids."""
    learnt, unlearnt = ([i for part in parts for i in ids_of(part)] for parts in (marker.learnt, marker.unlearnt))
    return MarkerIds(np.array([*learnt, *unlearnt], np.uint32), len(learnt))
