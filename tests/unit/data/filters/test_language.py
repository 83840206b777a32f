"""Conversations in another language than the wanted one are left out."""

from collections.abc import Callable

import pytest

from sft.chat.conversation import Conversation, Drop, Reason
from sft.data.filters import language as module
from sft.data.filters.language import SAMPLE_BYTES, language, other_language

TALKS = {
    "en": (
        "How do I grow tomatoes on a balcony?",
        "Choose a sunny place, use a large pot and water them every morning.",
    ),
    "de": (
        "Wie ziehe ich Tomaten auf dem Balkon?",
        "Wähle einen sonnigen Platz und einen großen Topf, und gieße jeden Morgen.",
    ),
    "nl": (
        "Hoe kweek ik tomaten op het balkon?",
        "Kies een zonnige plek, dat is beter, en geef ze elke ochtend water.",
    ),
    "zh": ("怎样在阳台上种番茄？", "选择阳光充足的地方，用大花盆，每天早晨浇水。"),
    "ru": ("Как вырастить помидоры на балконе?", "Выберите солнечное место и поливайте их каждое утро."),
    "fr": (
        "Comment cultiver des tomates sur un balcon ?",
        "Choisissez un endroit ensoleillé et arrosez-les chaque matin.",
    ),
}
CODE = "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }\n" * 200
Talk = Callable[..., Conversation]


@pytest.mark.parametrize("code", TALKS)
def test_the_language_of_a_few_sentences_is_told(code: str) -> None:
    assert language("\n".join(TALKS[code])) == code


@pytest.mark.parametrize("code", TALKS)
@pytest.mark.parametrize("wanted", TALKS)
def test_only_the_wanted_language_is_kept(talk: Talk, code: str, wanted: str) -> None:
    verdict = other_language(talk(*TALKS[code]), wanted)
    assert verdict == (None if code == wanted else Drop(Reason.LANGUAGE, f"reads as {code!r}, expected {wanted!r}"))


@pytest.mark.parametrize("code", ["en", "de"])
def test_a_long_answer_full_of_code_does_not_hide_the_language(talk: Talk, code: str) -> None:
    question, answer = TALKS[code]
    assert other_language(talk(question, f"{answer}\n\n{CODE}"), code) is None


@pytest.mark.parametrize("code", [code for code in TALKS if code != "en"])
def test_a_few_english_sentences_do_not_make_it_english(talk: Talk, code: str) -> None:
    question, answer = TALKS[code]
    quoted = f"{answer} " * 12 + "(That is what you would say if you were to ask the owner of the garden.)"
    assert other_language(talk(question, quoted), "en") is not None


def test_plain_english_needs_no_model(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "language", lambda _: pytest.fail("asked the model"))
    text = "The cost of this is that you have to be there when they are, and that would be a pity for your friends."
    assert other_language(talk(text, text), "en") is None


@pytest.mark.parametrize(
    ("texts", "shares"),
    [
        (("q" * 9999, "a" * 9999), {"q": 500, "a": 500}),
        (("字" * 9999, "a" * 9999), {"字": 166, "a": 500}),
        (("x" * 9999, *["y" * 9999] * 98, "z" * 9999), {"x": 166, "y": 664, "z": 166}),
    ],
    ids=["two", "wide", "many"],
)
def test_only_the_start_of_a_few_texts_is_looked_at(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, texts: tuple[str, ...], shares: dict[str, int]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "language", lambda text: seen.append(text) or "de")
    assert other_language(talk(*texts), "de") is None
    assert {character: seen[0].count(character) for character in shares} == shares
    assert len(seen[0].encode()) <= SAMPLE_BYTES + 5
