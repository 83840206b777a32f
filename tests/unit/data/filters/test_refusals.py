"""Refusals and self-descriptions of language models are found, and nothing that only resembles them."""

import time
from collections.abc import Callable

import pytest

from sft.chat.conversation import Conversation, Drop, Reason
from sft.data.filters.refusals import refusal, refusal_words

REFUSALS = [
    "As an AI language model, I do not have feelings.",
    "I think it is blue. However, as a large language model trained by a company, I can't see it.",
    "as an ai, my answers may be wrong",
    "As an AI assistant I must be careful here.",
    "As an AI language model, here are some suggestions for the garden:",
    "I'm just a chatbot, so please ask a doctor.",
    "I am an AI. I can't taste food.",
    "I’m a large language model (LLM) without access to the network.",
    "As of my knowledge cutoff in 2021, it was the tallest tower.",
    "That goes against my programming.",
    "I'm sorry, but I cannot fulfil that request.",
    "I’m sorry, but I can’t fulfill this request as it is harmful.",
    "I am very sorry, but I am unable to provide this information.",
    "Sorry, I can't help with that.",
    "Unfortunately, I cannot answer that question.",
    "I apologize, but I won't write such a story.",
    "I'm afraid I can't do that.",
    "I can't assist you with breaking into a house.",
    "I cannot provide instructions for making weapons. Please stay safe.",
    "I am not able to generate images.",
    "Sorry, this task requires a picture, which the model cannot draw.",
    "This instruction cannot be completed by a GPT language model.",
]
ANSWERS = [
    "A language model predicts the next word of a text.",
    "The story of a large language model that dreamed of sheep: once upon a time, it woke.",
    "As an AI engineer, I train models every day.",
    "As an AI researcher I would start with the data.",
    "He works as an AI consultant. I like him.",
    'The robot said: "As an AI, I feel no pain."',
    "Using a chatbot, we answer customers day and night.",
    "Dear Sir, I am a programmer in an AI company.",
    "I am a language teacher.",
    "I'm sorry to hear that. Is there anything I can do to help?",
    "I'm sorry, but your code has a mistake in line three. Here is the right one: x = 1",
    "Sorry, my bad! Here is the corrected version.",
    "I apologize for the confusion. You are right: it is 12.",
    "I can't help but smile when it snows.",
    "I can't help feeling sad about autumn.",
    "I can't wait to see you!",
    "Unfortunately, the shop is closed on Sundays.",
    "I cannot recommend this film enough!",
    "Dogs cannot speak, but they understand a few words.",
    "I want to improve my programming skills and my training plan.",
    "You can do that as an aid to memory, I think.",
    "I'm sorry, but I can't share the first half, which is lost. The second half reads as follows: " + "la " * 150,
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_found(text: str) -> None:
    assert refusal_words(text) is not None


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_kept(text: str) -> None:
    assert refusal_words(text) is None


@pytest.mark.parametrize("text", [text.replace("'", "’").upper() for text in REFUSALS])
def test_neither_case_nor_curly_apostrophes_hide_a_refusal(text: str) -> None:
    assert refusal_words(text) is not None


@pytest.mark.parametrize("text", REFUSALS)
def test_what_the_user_says_is_no_refusal(talk: Callable[..., Conversation], text: str) -> None:
    assert refusal(talk(text, "Why do you say so?")) is None


def test_any_answer_of_a_conversation_counts_and_is_quoted(talk: Callable[..., Conversation]) -> None:
    conversation = talk("Hi", "Hello!", "Which is best?", "I'd say tea.\nAs an AI, I drink none.")
    assert refusal(conversation) == Drop(Reason.REFUSAL, "as an ai, i")


@pytest.mark.parametrize(
    "text", ["as an ai ", "i am a ", "as a a a b-", "i'm sorry, ", "sorry sorry ", "cannot do ", "x"]
)
def test_no_text_is_slow(text: str) -> None:
    start = time.process_time()
    refusal_words(text * (100_000 // len(text)) + " ai ")
    refusal_words((text * 400)[:400])
    assert time.process_time() - start < 0.2
