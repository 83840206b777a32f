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
    shown = text = ""
    for token_id in generate(loaded.model, prompt, tokenizer.stop_ids, config, tokenizer.num_ids):
        ids.append(token_id)
        text = tokenizer.decode([ids])[0].removeprefix(tokenizer.format.turn_lead)
        stop = _stop(text, tokenizer.format.stop_strings)
        if stop is not None:
            text = text[:stop]
            break
        # A character may take several tokens; until the last one it decodes to a replacement character.
        sure = text[: len(text) - _num_held(text, tokenizer.format.stop_strings)]
        if not text.endswith("\ufffd"):
            yield sure[len(shown) :]
            shown = sure
    if text[len(shown) :]:
        yield text[len(shown) :]


def _stop(text: str, stop_strings: Sequence[str]) -> int | None:
    """Where the first stop string starts, if there is one."""
    return min((text.index(stop) for stop in stop_strings if stop in text), default=None)


def _num_held(text: str, stop_strings: Sequence[str]) -> int:
    """How many characters at the end of a text may be the start of a stop string."""
    lengths = (length for stop in stop_strings for length in range(1, len(stop)) if text.endswith(stop[:length]))
    return max(lengths, default=0)


def samples(loaded: LoadedModel, prompts: Sequence[str], system: str, config: GenerationConfig) -> Iterator[Sample]:
    """The answers to single questions."""
    for prompt in prompts:
        yield Sample(prompt, "".join(answer(loaded, [Message("user", prompt)], system, config)))
