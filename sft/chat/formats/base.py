"""What tells one chat format from another: what stands between the texts of a conversation, and what of it is learnt.

    <system marker> S <first user> U <assistant> A <next user> U <assistant> A <end marker>

The texts are the system text, then the turns by user and assistant. A format is a value: everything that encodes,
proves, shows, exports or answers reads it and knows no tag by name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYSTEM, FIRST_USER, ASSISTANT, NEXT_USER, END = range(5)
"""The kinds of markers, each named for the text that it opens; the last one ends the document."""
NUM_MARKERS = 5


@dataclass(frozen=True)
class Control:
    """A control token by its name: it is inserted by number, so that no text can forge it."""

    name: str


Part = Control | str
"""A piece of a marker: a control token, or literal text, which is encoded by itself."""


@dataclass(frozen=True)
class Marker:
    """What stands between two texts."""

    learnt: tuple[Part, ...] = ()
    """Comes first, ends the answer before it and carries its loss."""
    unlearnt: tuple[Part, ...] = ()
    """Comes behind that and carries no loss."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.learnt + self.unlearnt

    @property
    def text(self) -> str:
        """The marker spelt out."""
        return "".join(part.name if isinstance(part, Control) else part for part in self.parts)


@dataclass(frozen=True)
class MarkerIds:
    """A marker as the ids of one tokenizer."""

    ids: NDArray[np.uint32]
    num_learnt: int
    """How many of the first ids carry loss."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ChatFormat:
    """One way to write conversations as text for a model."""

    name: str
    end_token: str
    """The tokenizer's token for the end of a document."""
    pad_token: str
    tags: tuple[str, ...]
    """Control tokens that a tokenizer is given if it lacks them."""
    published_ids: Mapping[str, int]
    """The ids of all control tokens with GPT-NeoX-20B's tokenizer."""
    default_system: str
    """System text of chats that name none; recipes call it `card`."""
    system: Marker
    first_user: Marker
    assistant: Marker
    next_user: Marker
    """Before a user's later turn, behind an answer."""
    end: Marker
    stop_tokens: tuple[str, ...]
    """Where an answer ends, in the order in which the model card lists them."""
    template: str
    """Jinja template of chats, with DEFAULT_SYSTEM for the system text of chats that name none."""
    stop_strings: tuple[str, ...] = ()
    """Texts at which an answer ends as well."""
    turn_lead: str = ""
    """Encoded as one with every turn's text, such as the space that a word's token begins with."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """All tokens that no text may become."""
        return (self.end_token, self.pad_token, *self.tags)

    @property
    def markers(self) -> tuple[Marker, ...]:
        """The markers in the order of their kinds."""
        return (self.system, self.first_user, self.assistant, self.next_user, self.end)

    @property
    def opening_tokens(self) -> tuple[str, ...] | None:
        """The control tokens behind each of which a text begins, and behind nothing else; None if there are none such.

        With them the turns can be read back from ids alone.
        """
        *openings, end = self.markers
        last = [marker.parts[-1] if marker.parts else "" for marker in openings]
        others = {*end.parts, *(part for marker in openings for part in marker.parts[:-1])}
        tokens = dict.fromkeys(part.name for part in last if isinstance(part, Control) and part not in others)
        return tuple(tokens) if all(isinstance(part, Control) and part.name in tokens for part in last) else None

    @property
    def sketch(self) -> str:
        """The markers with dots in place of the texts, for people."""
        lead = self.turn_lead
        return f"{self.system.text}…{self.first_user.text}{lead}…{self.assistant.text}{lead}…"

    def chat_template(self, system: str) -> str:
        """The Jinja template; chats that name no system text get this one."""
        # A JSON string is a Jinja string as well, whatever quotes, newlines and braces it holds.
        return self.template.replace("DEFAULT_SYSTEM", json.dumps(system, ensure_ascii=False))


def marker_kind(number: int) -> int:
    """The kind of marker before a document's text of this number: the system text is number 0, the first question 1."""
    return number if number < 2 else (NEXT_USER if number % 2 else ASSISTANT)


def marker_kinds(numbers: NDArray[Any]) -> NDArray[Any]:
    """The same for many at once."""
    return np.where(numbers < 2, numbers, np.where(numbers % 2, NEXT_USER, ASSISTANT))


def marker_ids(marker: Marker, ids_of: Callable[[Part], Sequence[int]]) -> MarkerIds:
    """A marker as ids, given those of its parts."""
    learnt, unlearnt = ([i for part in parts for i in ids_of(part)] for parts in (marker.learnt, marker.unlearnt))
    return MarkerIds(np.array([*learnt, *unlearnt], np.uint32), len(learnt))
