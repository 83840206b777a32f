"""Conversations in another language than the wanted one are left out."""

import pytest

from sft.chat.conversation import Conversation, Drop, Message, Reason
from sft.data.filters import LANGUAGE_SAMPLE_CHARACTERS, language, other_language

TALKS = {
    "en": (
        "How do I grow tomatoes on a balcony?",
        "Choose a sunny place, use a large pot and water them every morning.",
    ),
    "de": (
        "Wie ziehe ich Tomaten auf dem Balkon?",
        "Wähle einen sonnigen Platz und einen großen Topf, und gieße jeden Morgen.",
    ),
    "zh": ("怎样在阳台上种番茄？", "选择阳光充足的地方，用大花盆，每天早晨浇水。"),
    "fr": (
        "Comment cultiver des tomates sur un balcon ?",
        "Choisissez un endroit ensoleillé et arrosez-les chaque matin.",
    ),
}
CODE = "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }\n" * 200


def talk(*texts: str) -> Conversation:
    return Conversation(tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)))


@pytest.mark.parametrize("code", TALKS)
def test_the_language_of_a_few_sentences_is_told(code: str) -> None:
    assert language("\n".join(TALKS[code])) == code


@pytest.mark.parametrize("code", TALKS)
@pytest.mark.parametrize("wanted", TALKS)
def test_only_the_wanted_language_is_kept(code: str, wanted: str) -> None:
    verdict = other_language(talk(*TALKS[code]), wanted)
    assert verdict == (None if code == wanted else Drop(Reason.LANGUAGE, f"{code}, expected {wanted}"))


@pytest.mark.parametrize("code", TALKS)
def test_without_a_wish_every_language_is_kept(code: str) -> None:
    assert other_language(talk(*TALKS[code]), None) is None


@pytest.mark.parametrize("code", ["en", "de"])
def test_a_long_answer_full_of_code_does_not_hide_the_language(code: str) -> None:
    question, answer = TALKS[code]
    assert other_language(talk(question, f"{answer}\n\n{CODE}"), code) is None


def test_only_the_start_of_each_text_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("sft.data.filters.language", lambda text: seen.append(text) or "en")
    other_language(talk("q" * 9999, "a" * 9999), "en")
    other_language(talk(*("x" * 9999 for _ in range(100))), "en")
    assert seen[0].count("q") == seen[0].count("a") == LANGUAGE_SAMPLE_CHARACTERS / 2
    assert seen[1].count("x") == 100 * 100
