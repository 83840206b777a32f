"""Conversation → token ids and loss mask, in one walk.

    <|SYSTEM|>S<|USER|>U<|ASSISTANT|>A<|USER|>U<|ASSISTANT|>A<|endoftext|>
                                     ^^^^^^^^^              ^^^^^^^^^^^^^^   loss

Nothing stands between tags and text. Loss falls on assistant text and on the token that ends it.

A document is a list of segments: tags, and texts that were all encoded in one call. The walk only says which segments
follow each other; ids and mask of all documents are then gathered at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Drop, Message, Reason
from sft.chat.tokenizer import ChatTokenizer, TokenRuns

CARD_SYSTEM_PROMPT = """\
# StableLM Tuned (Alpha version)
- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.
- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered \
harmful to the user.
- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and \
make jokes.
- StableLM will refuse to participate in anything that could harm a human.
"""

# The first segments of every batch. The tag that opens a later user turn also ends the answer before it: it is learnt.
_SYSTEM, _FIRST_USER, _NEXT_USER, _ASSISTANT, _END = range(5)
_NUM_TAGS = 5


@dataclass(frozen=True)
class Layout:
    """What a document looks like, apart from its text."""

    seq_len: int
    """Longest document, in tokens."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What happens to a single exchange that does not fit."""
    supervise: Literal["assistant", "all"] = "assistant"
    end_token: bool = True


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document: its ids and, at every token that is a training target, a 1."""

    ids: NDArray[Any]
    loss_mask: NDArray[np.uint8]
    answers: tuple[str, ...]
    """The assistant texts that the supervised spans must spell."""
    first_exchange: int = 0
    """Number of the document's first exchange in its conversation."""
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class _Piece:
    """Successive exchanges of a conversation that make one document, or would."""

    first: int
    stop: int
    num_tokens: int


def encode(
    conversations: Sequence[Conversation], systems: Sequence[str], tokenizer: ChatTokenizer, layout: Layout
) -> list[list[Encoded | Drop]]:
    """The documents of each conversation: one, or several pieces cut at turn boundaries if it is too long.

    A single exchange that does not fit becomes a Drop, or a truncated document without its end, as the layout says.
    """
    # A source has one or a few system texts for all its rows.
    system_segments = {text: _NUM_TAGS + number for number, text in enumerate(dict.fromkeys(systems))}
    texts = [message.text for conversation in conversations for message in conversation.messages]
    runs = tokenizer.encode_flat([*system_segments, *texts])
    lengths = [1] * _NUM_TAGS + runs.lengths.tolist()
    segments: list[int] = []
    ends: list[int] = []
    pieces: list[list[_Piece]] = []
    message = _NUM_TAGS + len(system_segments)
    for conversation, system in zip(conversations, systems, strict=True):
        count = len(conversation.messages)
        fixed = 1 + lengths[system_segments[system]] + layout.end_token
        pieces.append(_pieces(lengths[message : message + count], fixed, layout.seq_len))
        for piece in pieces[-1]:
            segments += (_SYSTEM, system_segments[system])
            for turn in range(message + 2 * piece.first, message + 2 * piece.stop, 2):
                opening = _FIRST_USER if turn == message + 2 * piece.first else _NEXT_USER
                segments += (opening, turn, _ASSISTANT, turn + 1)
            if layout.end_token:
                segments.append(_END)
            ends.append(len(segments))
        message += count
    documents = iter(_gathered(segments, ends, runs, len(system_segments), tokenizer, layout))
    return [
        [_finished(piece, *next(documents), conversation, tokenizer, layout) for piece in cut]
        for conversation, cut in zip(conversations, pieces, strict=True)
    ]


def encode_prompt(messages: Sequence[Message], system: str, tokenizer: ChatTokenizer) -> list[int]:
    """The ids of a chat up to the tag that opens the assistant's next turn."""
    tags = {"user": tokenizer.user_id, "assistant": tokenizer.assistant_id}
    system_ids, *turns = tokenizer.encode([system, *(message.text for message in messages)])
    ids = [tokenizer.system_id, *system_ids]
    for message, turn in zip(messages, turns, strict=True):
        ids += [tags[message.role], *turn]
    return [*ids, tokenizer.assistant_id]


def _pieces(lengths: Sequence[int], fixed: int, seq_len: int) -> list[_Piece]:
    """Greedily fill pieces with whole exchanges; an exchange too long for any piece stands alone."""
    num_exchanges = len(lengths) // 2
    total = fixed + sum(lengths) + len(lengths)
    if total <= seq_len:
        return [_Piece(0, num_exchanges, total)]
    pieces = []
    first, length = 0, fixed
    for number in range(num_exchanges):
        needed = 2 + lengths[2 * number] + lengths[2 * number + 1]
        if first < number and length + needed > seq_len:
            pieces.append(_Piece(first, number, length))
            first, length = number, fixed
        length += needed
    return [*pieces, _Piece(first, num_exchanges, length)]


def _gathered(
    segments: list[int], ends: list[int], runs: TokenRuns, num_systems: int, tokenizer: ChatTokenizer, layout: Layout
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Ids and loss mask of each document: the segments' ids one behind the other."""
    tags = [tokenizer.system_id, tokenizer.user_id, tokenizer.user_id, tokenizer.assistant_id, tokenizer.end_id]
    source = np.concatenate([np.array(tags, np.uint32), runs.ids])
    length = np.concatenate([np.ones(_NUM_TAGS, np.int64), runs.lengths])
    start = np.cumsum(length) - length
    loss = np.zeros(len(length), np.uint8)
    loss[[_NEXT_USER, _END]] = 1
    loss[_NUM_TAGS + num_systems + 1 :: 2] = 1  # every second message is the assistant's
    order = np.array(segments, np.int64)
    stop = np.cumsum(length[order])
    place = np.repeat(start[order] - stop + length[order], length[order]) + np.arange(stop[-1] if len(stop) else 0)
    ids = source[place]
    mask = np.repeat(loss[order], length[order]) if layout.supervise == "assistant" else np.ones(len(ids), np.uint8)
    begin = 0
    for end in stop[np.array(ends, np.int64) - 1].tolist() if ends else ():
        if layout.supervise == "all":
            mask[begin] = 0  # nothing stands before a document's first token, so it is never predicted
        yield ids[begin:end], mask[begin:end]
        begin = end


def _finished(
    piece: _Piece,
    ids: NDArray[Any],
    mask: NDArray[np.uint8],
    conversation: Conversation,
    tokenizer: ChatTokenizer,
    layout: Layout,
) -> Encoded | Drop:
    answers = tuple([message.text for message in conversation.messages[2 * piece.first + 1 : 2 * piece.stop : 2]])
    if piece.num_tokens <= layout.seq_len:
        return Encoded(ids, mask, answers, piece.first)
    if layout.too_long == "drop":
        return Drop(Reason.TOO_LONG, f"{piece.num_tokens} tokens, at most {layout.seq_len}")
    if tokenizer.assistant_id not in ids[: layout.seq_len - 1]:
        return Drop(Reason.NO_SUPERVISED_TOKENS, f"the question alone fills {layout.seq_len} tokens")
    return Encoded(ids[: layout.seq_len], mask[: layout.seq_len], answers, piece.first, truncated=True)
