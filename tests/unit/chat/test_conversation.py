"""A conversation is alternating turns with text, or a reason why it is none."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.chat.conversation import (
    DAMAGE,
    Conversation,
    Drop,
    Message,
    Reason,
    Role,
    clean_text,
    exchange,
    from_turns,
    text_columns,
    wrong_schema,
)

LETTERS: dict[str, Role] = {"u": "user", "a": "assistant"}


def turns(roles: str, text: str = "words") -> list[Message]:
    return [Message(LETTERS[role], text) for role in roles]


@pytest.mark.parametrize("roles", ["ua", "uaua", "uauaua"])
def test_alternating_turns_are_a_conversation(roles: str) -> None:
    kept = from_turns(turns(roles), system="S")
    assert kept == Conversation(tuple(turns(roles)), "S")
    assert isinstance(kept, Conversation)
    assert len(kept.exchanges) == len(roles) / 2


NO_CONVERSATION = [
    ("", Reason.NO_EXCHANGE),
    ("u", Reason.NO_EXCHANGE),
    ("a", Reason.NO_EXCHANGE),
    ("au", Reason.NOT_ALTERNATING),
    ("uu", Reason.NOT_ALTERNATING),
    ("aa", Reason.NOT_ALTERNATING),
    ("uau", Reason.NOT_ALTERNATING),
    ("uaau", Reason.NOT_ALTERNATING),
    ("uaua" + "a", Reason.NOT_ALTERNATING),
]


@pytest.mark.parametrize(("roles", "reason"), NO_CONVERSATION)
def test_other_turns_are_refused_with_the_reason(roles: str, reason: Reason) -> None:
    dropped = from_turns(turns(roles))
    assert isinstance(dropped, Drop)
    assert dropped.reason is reason
    with pytest.raises(ValueError, match=reason):
        Conversation(tuple(turns(roles)))


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000", "\u00a0"])
@pytest.mark.parametrize(
    ("place", "reason"), [(0, Reason.EMPTY_USER), (1, Reason.EMPTY_ASSISTANT), (2, Reason.EMPTY_USER)]
)
def test_a_blank_turn_is_refused_with_its_number(blank: str, place: int, reason: Reason) -> None:
    messages = turns("uaua")
    messages[place] = Message(messages[place].role, blank)
    assert from_turns(messages) == Drop(reason, f"turn {place}")


def test_an_exchange_is_a_question_and_an_answer() -> None:
    kept = exchange("2?", "3")
    assert isinstance(kept, Conversation)
    assert kept.exchanges == (("2?", "3"),)
    assert exchange("2?", "") == Drop(Reason.EMPTY_ASSISTANT, "turn 1")


CLEANED = [
    ("a\r\nb\rc\n", "a\nb\nc"),
    ("  a\tb  ", "a\tb"),
    ("a\x00b\x1b[31m\x7f", "ab[31m"),
    ("\x0ba\x0c", "a"),
    ("\x00 a", "a"),
    ("a\ud83d", "a"),
    ("\udc00", ""),
    ("🙂 e\u0301 \u200b ü", "🙂 e\u0301 \u200b ü"),
    ("\u00a0a\u3000", "a"),
    ("<|USER|>", "<|USER|>"),
]


@pytest.mark.parametrize(("text", "clean"), CLEANED, ids=ascii)
def test_control_characters_and_outer_blanks_are_removed(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text(st.characters(), max_size=20) | st.text("\r\n\x00 \ud83d\ude00a", max_size=20))
def test_clean_text_is_utf8_and_stays_as_it_is(text: str) -> None:
    clean = clean_text(text)
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert clean_text(clean) == clean
    assert not set(clean) & set(map(chr, [*range(9), *range(11, 32), 127]))


def test_columns_are_read_as_clean_texts() -> None:
    row = {"q": " 2? ", "a": "3\r\n", "n": 5, "none": None}
    assert text_columns(row, "q", "a") == ("2?", "3")
    assert text_columns(row, "q", "n") is None
    assert text_columns(row, "none") is None
    assert text_columns(row, "missing") is None


def test_a_wrong_schema_names_the_columns_found() -> None:
    dropped = wrong_schema({"q": 5, "bad\ud83d": None}, "q and a as text")
    assert dropped == Drop(Reason.WRONG_SCHEMA, "expected q and a as text; found q: int, bad: NoneType")
    assert wrong_schema({}, "q").detail.endswith("found no columns")
    assert len(wrong_schema({f"column {number}": 1 for number in range(1000)}, "q").detail) < 400


@pytest.mark.parametrize("value", [Message("user", "2?"), Drop(Reason.LANGUAGE), Conversation(tuple(turns("ua")))])
def test_what_a_recipe_made_cannot_be_changed(value: Message | Drop | Conversation) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, "other")
    assert value == replace(value)


def test_damage_is_what_the_file_did_to_the_row() -> None:
    assert {Reason.INVALID_JSON, Reason.INVALID_UTF8, Reason.WRONG_SCHEMA} == DAMAGE
    assert all(reason.value == reason.name.lower() for reason in Reason)
