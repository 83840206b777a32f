"""Damage is undone, and everything else stays byte for byte."""

import random
import time
from collections.abc import Callable

import pytest

from sft.chat.conversation import Conversation, Drop, Reason
from sft.data.filters.mojibake import repair, repaired

CURLY = "“It’s” – a naïve café, isn’t it? … 5 € ‘n’ • 20 °C"


def misread(text: str, encoding: str = "cp1252") -> str:
    """The text as it looks when its UTF-8 bytes are read in another encoding."""
    return text.encode().decode(encoding)


REPAIRED = [
    (misread("schön"), "schön"),
    (misread("It’s “fine” – really…", "latin-1"), "It’s “fine” – really…"),
    (misread(misread("café")), "café"),
    (misread("Привет, мир", "cp1251"), "Привет, мир"),
    (misread("It’s", "mac-roman"), "It’s"),
    (misread("naïve", "cp437"), "naïve"),
    (f"a good line – ‘n’ 🙂\n{misread('a bad one: schön')}", "a good line – ‘n’ 🙂\na bad one: schön"),
    ("don\x92t", "don’t"),  # Windows' apostrophe among Latin-1 text
    ("voil\xc3 le travail", "voilà le travail"),
    ("\ufeffHello", "Hello"),
    ("zero\u200bwidth", "zerowidth"),
    ("\u202eevil\u202c \u2066isolate\u2069", "evil isolate"),
    ("a\ufff9b\ufffac\ufffb", "abc"),
    ("x\ufdd0y\uffffz\U0010fffe", "xyz"),
    ("next\x81 one \x9d", "next one"),
    ("\ufeff \u200b text", "text"),
]
KEPT = [
    "",
    "plain ASCII, with\ttabs\nand lines",
    CURLY,
    "ﬁne ＡＢＣ ½ ① ™ &amp; <br> \u00a0 \u00ad \u2028",
    "cafe\u0301 and caf\u00e9: NFC is the tokenizer's",
    "👩\u200d💻 👨\u200d👩\u200d👧 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "क्\u200dष می\u200cخواهم",  # joiners that change what is written
    "שלום\u200f (abc)\u200e",
    "日本語のテキスト、中文文本。한국어",
    "Привет, мир! Ёлка",
    "Ελληνικά, ΆΈΉ",
    "ÀÉÎ ÃO NÃO à la carte, Ãngela, où, São Paulo, Pelé‘s",
    "├── src\n│   └── main.py",
    "\ufffd lost and \ufffc object",
]


@pytest.mark.parametrize(("damaged", "expected"), REPAIRED, ids=[repr(after) for _, after in REPAIRED])
def test_damage_is_undone(damaged: str, expected: str) -> None:
    assert repair(damaged) == expected
    assert repair(expected) == expected


@pytest.mark.parametrize("text", KEPT)
def test_what_is_not_damaged_stays(text: str) -> None:
    assert repair(text) == text


def test_repairing_again_changes_nothing() -> None:
    rng = random.Random(0)
    pieces = [text for pair in REPAIRED for text in pair] + KEPT
    for _ in range(200):
        once = repair(" ".join(rng.sample(pieces, 3)))
        assert repair(once) == once


def test_every_text_of_a_conversation_is_repaired(talk: Callable[..., Conversation]) -> None:
    damaged = talk(misread("Café?"), "yes\u200b", "fine", "ok", system=misread("naïve"))
    assert repaired(damaged) == talk("Café?", "yes", "fine", "ok", system="naïve")


def test_an_undamaged_conversation_is_the_same_object(talk: Callable[..., Conversation]) -> None:
    conversation = talk(CURLY, *KEPT[1:6], system=CURLY)
    assert repaired(conversation) is conversation


@pytest.mark.parametrize(
    ("texts", "reason"),
    [(("\ufeff", "yes"), Reason.EMPTY_USER), (("yes?", "\u200b\u200b"), Reason.EMPTY_ASSISTANT)],
)
def test_a_turn_of_invisible_characters_drops_the_conversation(
    talk: Callable[..., Conversation], texts: tuple[str, str], reason: Reason
) -> None:
    result = repaired(talk(*texts))
    assert isinstance(result, Drop)
    assert result.reason is reason


@pytest.mark.parametrize("text", ["a" * 100_000, "Ã" * 100_000, "Ã " * 50_000, "â€™ " * 30_000, "\u200b" * 100_000])
def test_no_text_is_slow(text: str) -> None:
    repair(misread("é"))
    start = time.process_time()
    repair(text)
    assert time.process_time() - start < 1
