"""The stages of a source between recipe and tokenizer, in the order in which they run."""

from collections.abc import Callable
from dataclasses import dataclass

from sft.chat.conversation import Conversation, Drop
from sft.config.data import SourceConfig
from sft.data.filters.contamination import EvaluationIndex
from sft.data.filters.language import other_language
from sft.data.filters.length import wrong_length
from sft.data.filters.mojibake import repaired
from sft.data.filters.pii import redacted
from sft.data.filters.refusals import refusal

Stage = Callable[[Conversation], Conversation | Drop]


@dataclass(frozen=True)
class Outcome:
    """The result of the stages for one conversation."""

    conversation: Conversation | Drop
    changed: tuple[str, ...]
    """The stages that changed its text; none for a dropped one."""


@dataclass(frozen=True)
class Stages:
    """The stages that a source has switched on, by name."""

    steps: tuple[tuple[str, Stage], ...]

    def run(self, conversation: Conversation) -> Outcome:
        """Run a conversation through the stages, up to the first that drops it."""
        changed = []
        for name, stage in self.steps:
            result = stage(conversation)
            if isinstance(result, Drop):
                return Outcome(result, ())
            if result is not conversation:
                changed.append(name)
                conversation = result
        return Outcome(conversation, tuple(changed))


def stages(source: SourceConfig, evaluation: EvaluationIndex | None) -> Stages:
    """The stages that a source has switched on."""
    steps: list[tuple[str, Stage]] = []
    if source.repair:
        steps.append(("repair", repaired))
    shortest, longest = source.min_answer_characters, source.max_characters
    if shortest > 0 or longest is not None:
        steps.append(("length", _keep_unless(lambda conversation: wrong_length(conversation, shortest, longest))))
    wanted = source.language
    if wanted is not None:
        steps.append(("language", _keep_unless(lambda conversation: other_language(conversation, wanted))))
    if source.refusals == "drop":
        steps.append(("refusals", _keep_unless(refusal)))
    if source.decontaminate and evaluation is not None:
        steps.append(("contamination", _keep_unless(evaluation.match)))
    if source.personal_data == "redact":
        steps.append(("personal_data", redacted))
    return Stages(tuple(steps))


def _keep_unless(find: Callable[[Conversation], Drop | None]) -> Stage:
    return lambda conversation: find(conversation) or conversation
