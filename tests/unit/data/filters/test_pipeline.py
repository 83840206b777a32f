"""Which stages a source has, in which order they look, and what comes out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.chat.conversation import Conversation, Drop, Reason
from sft.config.data import SourceConfig
from sft.data.filters.contamination import EvaluationIndex
from sft.data.filters.pipeline import Outcome, stages

Talk = Callable[..., Conversation]
QUESTION = "Which of these nine planets has the largest number of moons, rings and storms today?"
EVERYTHING: dict[str, Any] = {
    "language": "en",
    "max_characters": 1000,
    "refusals": "drop",
    "personal_data": "redact",
}


def source(**changes: Any) -> SourceConfig:
    texts = dict.fromkeys(("title", "hub_id", "license", "citation", "system"), "x")
    return SourceConfig(files=("x",), **texts, **changes)


@pytest.fixture
def evaluation(tmp_path: Path) -> EvaluationIndex:
    path = tmp_path / "quiz.txt"
    path.write_text(QUESTION)
    return EvaluationIndex.load([path], 13)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["repair", "contamination"]),
        ({"repair": False, "decontaminate": False}, []),
        ({"min_answer_characters": 1, "decontaminate": False}, ["repair", "length"]),
        (EVERYTHING, ["repair", "length", "language", "refusals", "contamination", "personal_data"]),
    ],
)
def test_only_what_is_switched_on_is_there_in_order(
    evaluation: EvaluationIndex, changes: dict[str, Any], names: list[str]
) -> None:
    assert [name for name, _ in stages(source(**changes), evaluation).steps] == names


def test_without_evaluation_files_nothing_is_compared() -> None:
    assert [name for name, _ in stages(source(), None).steps] == ["repair"]


def test_a_good_conversation_passes_as_the_same_object(talk: Talk, evaluation: EvaluationIndex) -> None:
    conversation = talk("How are you today, and what have you been doing?", "I have been well, thank you.")
    outcome = stages(source(**EVERYTHING), evaluation).run(conversation)
    assert outcome.conversation is conversation
    assert outcome.changed == ()


def test_the_stages_that_changed_the_text_are_named(talk: Talk) -> None:
    outcome = stages(source(personal_data="redact"), None).run(talk("\ufeffWho?", "ann@corp.org"))
    assert outcome == Outcome(talk("Who?", "<email>"), ("repair", "personal_data"))


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("\u200b", "yes"), Reason.EMPTY_USER),
        (("Why is that so? " * 80, "No."), Reason.LENGTH),
        (("Wie geht es dir heute Morgen?", "Danke, sehr gut, und wie geht es Ihnen?"), Reason.LANGUAGE),
        (("What do you like?", "As an AI language model, I have no taste of my own."), Reason.REFUSAL),
        ((QUESTION, "It is Saturn, I would say."), Reason.CONTAMINATED),
    ],
)
def test_each_stage_drops_what_it_is_for(
    talk: Talk, evaluation: EvaluationIndex, texts: tuple[str, str], reason: Reason
) -> None:
    outcome = stages(source(**EVERYTHING), evaluation).run(talk(*texts))
    assert isinstance(outcome.conversation, Drop)
    assert outcome.conversation.reason is reason
    assert outcome.changed == ()


def test_damage_is_repaired_before_anything_else_looks(talk: Talk) -> None:
    hidden = talk("What do you like?", "As an A\u200bI language model, I have no taste of my own.")
    assert isinstance(stages(source(refusals="drop"), None).run(hidden).conversation, Drop)
    assert stages(source(refusals="drop", repair=False), None).run(hidden).conversation is hidden
