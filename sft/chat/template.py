"""Conversation → token ids and loss mask, in one walk.

    <|SYSTEM|>S<|USER|>U<|ASSISTANT|>A<|USER|>U<|ASSISTANT|>A<|endoftext|>
                                     ^^^^^^^^^              ^^^^^^^^^^^^^^   loss

Nothing stands between tags and text. Loss falls on assistant text and on the token that ends it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Drop, Message, Reason
from sft.chat.tokenizer import ChatTokenizer

CARD_SYSTEM_PROMPT = """\
# StableLM Tuned (Alpha version)
- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.
- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered \
harmful to the user.
- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and \
make jokes.
- StableLM will refuse to participate in anything that could harm a human.
"""

Exchange = tuple[list[int], list[int]]
"""Ids of a user text and of the assistant text that answers it."""


@dataclass(frozen=True)
class Layout:
    """What a document looks like, apart from its text."""

    seq_len: int
    """Longest document, in tokens."""
    too_long: Literal["drop", "truncate"] = "drop"
    supervise: Literal["assistant", "all"] = "assistant"
    end_token: bool = True


@dataclass(frozen=True)
class Encoded:
    """One document: its ids and, at every token that is a training target, a 1."""

    ids: NDArray[Any]
    loss_mask: NDArray[np.uint8]
    answers: tuple[str, ...]
    """The assistant texts that the supervised spans must spell."""
    truncated: bool = False


def encode(
    conversations: Sequence[Conversation], systems: Sequence[str], tokenizer: ChatTokenizer, layouts: Sequence[Layout]
) -> Iterator[list[Encoded | Drop]]:
    """The documents of each conversation: one, or several pieces cut at turn boundaries if it is too long.

    A single exchange that does not fit becomes a Drop, or a truncated document without its end, as the layout says.
    """
    distinct = list(dict.fromkeys(systems))  # a source has one or a few system texts for all its rows
    system_ids = dict(zip(distinct, tokenizer.encode(distinct), strict=True))
    encoded = iter(tokenizer.encode([message.text for item in conversations for message in item.messages]))
    for conversation, system, layout in zip(conversations, systems, layouts, strict=True):
        exchanges = [(next(encoded), next(encoded)) for _ in conversation.exchanges]
        yield list(_pieces(conversation, system_ids[system], exchanges, tokenizer, layout))


def encode_prompt(messages: Sequence[Message], system: str, tokenizer: ChatTokenizer) -> list[int]:
    """The ids of a chat up to the tag that opens the assistant's next turn."""
    tags = {"user": tokenizer.user_id, "assistant": tokenizer.assistant_id}
    system_ids, *turns = tokenizer.encode([system, *(message.text for message in messages)])
    ids = [tokenizer.system_id, *system_ids]
    for message, turn in zip(messages, turns, strict=True):
        ids += [tags[message.role], *turn]
    return [*ids, tokenizer.assistant_id]


def _pieces(
    conversation: Conversation,
    system_ids: list[int],
    exchanges: Sequence[Exchange],
    tokenizer: ChatTokenizer,
    layout: Layout,
) -> Iterator[Encoded | Drop]:
    """Greedily fill pieces with whole exchanges, each piece starting with the system block."""
    answers = [answer for _, answer in conversation.exchanges]
    fixed = 1 + len(system_ids) + int(layout.end_token)
    first, length = 0, fixed
    for number, (user, assistant) in enumerate(exchanges):
        needed = 2 + len(user) + len(assistant)
        if first < number and length + needed > layout.seq_len:
            yield _document(system_ids, exchanges[first:number], answers[first:number], tokenizer, layout)
            first, length = number, fixed
        length += needed
        if length > layout.seq_len:
            yield _too_long(system_ids, exchanges[number], answers[number], tokenizer, layout)
            first, length = number + 1, fixed
    if first < len(exchanges):
        yield _document(system_ids, exchanges[first:], answers[first:], tokenizer, layout)


def _document(
    system_ids: list[int],
    exchanges: Sequence[Exchange],
    answers: Sequence[str],
    tokenizer: ChatTokenizer,
    layout: Layout,
) -> Encoded:
    ids = [tokenizer.system_id, *system_ids]
    mask = [0] * len(ids)
    for number, (user, assistant) in enumerate(exchanges):
        # The tag that opens a later user turn also ends the answer before it, so it is learnt.
        ids += [tokenizer.user_id, *user, tokenizer.assistant_id, *assistant]
        mask += [int(number > 0), *[0] * (len(user) + 1), *[1] * len(assistant)]
    if layout.end_token:
        ids.append(tokenizer.end_id)
        mask.append(1)
    return Encoded(np.array(ids, np.uint32), _supervise(mask, layout), tuple(answers))


def _too_long(
    system_ids: list[int], exchange: Exchange, answer: str, tokenizer: ChatTokenizer, layout: Layout
) -> Encoded | Drop:
    whole = _document(system_ids, [exchange], [answer], tokenizer, layout)
    if layout.too_long == "drop":
        return Drop(Reason.TOO_LONG, f"{len(whole.ids)} tokens, at most {layout.seq_len}")
    question = 1 + len(system_ids) + 1 + len(exchange[0]) + 1
    if question >= layout.seq_len:
        return Drop(Reason.NO_SUPERVISED_TOKENS, f"the question alone fills {layout.seq_len} tokens")
    return Encoded(whole.ids[: layout.seq_len], whole.loss_mask[: layout.seq_len], (answer,), truncated=True)


def _supervise(mask: list[int], layout: Layout) -> NDArray[np.uint8]:
    if layout.supervise == "assistant":
        return np.array(mask, np.uint8)
    everything = np.ones(len(mask), np.uint8)
    everything[0] = 0  # nothing stands before a document's first token, so it is never predicted
    return everything
