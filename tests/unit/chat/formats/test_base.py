"""What follows from a format's markers."""

from dataclasses import replace

import jinja2
import numpy as np
import pytest

from sft.chat.formats.base import (
    ASSISTANT,
    END,
    FIRST_USER,
    NEXT_USER,
    NUM_MARKERS,
    SYSTEM,
    Control,
    Marker,
    marker_ids,
    marker_kind,
    marker_kinds,
)
from sft.chat.formats.stablelm import STABLELM, TAGS
from tests.support.plain_format import PLAIN


def test_before_each_text_stands_the_marker_of_its_turn() -> None:
    wanted = [SYSTEM, FIRST_USER, ASSISTANT, NEXT_USER, ASSISTANT, NEXT_USER, ASSISTANT]
    assert [marker_kind(number) for number in range(7)] == wanted
    assert marker_kinds(np.arange(7)).tolist() == wanted
    assert sorted({*wanted, END}) == list(range(NUM_MARKERS))


def test_turns_are_read_back_where_each_begins_behind_a_control_token_of_its_own() -> None:
    assert STABLELM.opening_tokens == TAGS


@pytest.mark.parametrize(
    "chat_format",
    [
        PLAIN,
        replace(STABLELM, assistant=Marker(unlearnt=(Control("<|ASSISTANT|>"), "\n"))),
        replace(STABLELM, end=Marker(learnt=(Control("<|USER|>"),))),
        replace(STABLELM, assistant=Marker(unlearnt=(Control("<|USER|>"), Control("<|ASSISTANT|>")))),
    ],
    ids=["plain roles", "text behind the token", "the token ends documents as well", "inside another marker"],
)
def test_turns_are_not_read_back_where_that_would_be_a_guess(chat_format: type) -> None:
    assert chat_format.opening_tokens is None  # type: ignore[attr-defined]


def test_a_marker_knows_how_much_of_it_is_learnt() -> None:
    marker = Marker(learnt=(Control("end"),), unlearnt=("ab", Control("tag")))
    found = marker_ids(marker, lambda part: [7] if isinstance(part, Control) else [1] * len(part))
    assert (found.ids.tolist(), found.num_learnt, len(found)) == ([7, 1, 1, 7], 1, 4)
    assert marker.text == "endabtag"


def test_a_format_is_sketched_for_people() -> None:
    assert STABLELM.sketch == "<|SYSTEM|>…<|USER|>…<|ASSISTANT|>…"
    assert PLAIN.sketch == "…\nASK: …\nSAY: …"


@pytest.mark.parametrize("chat_format", [STABLELM, PLAIN], ids=["stablelm", "plain"])
def test_the_template_gives_the_default_system_text(chat_format: type) -> None:
    text = "two\nlines, 'quoted' \"twice\" {{ braces }}"
    template = jinja2.Environment().from_string(chat_format.chat_template(text))  # type: ignore[attr-defined]
    assert text in template.render(messages=[{"role": "user", "content": "u"}])
