"""A checkpoint's answers, as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sft.chat.conversation import Message
from sft.chat.encode import encode_prompt
from sft.config.inference import GenerationConfig
from sft.inference.generate import generate
from sft.inference.load import LoadedModel


@dataclass(frozen=True)
class Sample:
    """One question and its answer."""

    prompt: str
    answer: str


def answer(loaded: LoadedModel, messages: Sequence[Message], system: str, config: GenerationConfig) -> Iterator[str]:
    """The answer to the last message, piece by piece as it is generated."""
    tokenizer = loaded.tokenizer
    prompt = encode_prompt(messages, system, tokenizer)
    ids: list[int] = []
    shown = ""
    for token_id in generate(loaded.model, prompt, tokenizer.stop_ids, config, tokenizer.num_ids):
        ids.append(token_id)
        text = tokenizer.decode([ids])[0]
        # A character may take several tokens; until the last one it decodes to a replacement character.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode([ids])[0][len(shown) :] if ids else ""
    if rest:
        yield rest


def samples(loaded: LoadedModel, prompts: Sequence[str], system: str, config: GenerationConfig) -> Iterator[Sample]:
    """The answers to single questions."""
    for prompt in prompts:
        yield Sample(prompt, "".join(answer(loaded, [Message("user", prompt)], system, config)))
