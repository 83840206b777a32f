"""Conversation → token ids and loss mask.

A document is a list of segments: the format's markers, and texts that were all encoded in one call. A loop lists the
segments of each document; the ids and loss masks of all documents are then gathered at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Drop, Message, Reason
from sft.chat.formats.base import ASSISTANT, END, FIRST_USER, NEXT_USER, NUM_MARKERS, SYSTEM, marker_kind
from sft.chat.tokenizer import ChatTokenizer, TokenRuns


@dataclass(frozen=True)
class Layout:
    """How conversations are laid out as documents."""

    seq_len: int
    """Maximum length of a document, in tokens."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What to do with a single exchange that does not fit."""
    supervise: Literal["assistant", "all"] = "assistant"
    end_token: bool = True


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document: its token ids, and a loss mask that is 1 at every token that is a training target."""

    ids: NDArray[Any]
    loss_mask: NDArray[np.uint8]
    turn_starts: NDArray[Any]
    """Where the system text and each turn's text start."""
    answers: tuple[str, ...]
    """The assistant texts to which the supervised spans must decode."""
    first_exchange: int = 0
    """Number of the document's first exchange in its conversation."""
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class _Piece:
    """Successive exchanges of a conversation that form one document, or would if they fitted."""

    first: int
    stop: int
    num_tokens: int


def encode(
    conversations: Sequence[Conversation], systems: Sequence[str], tokenizer: ChatTokenizer, layout: Layout
) -> list[list[Encoded | Drop]]:
    """The documents of each conversation: one, or several pieces cut at turn boundaries if it is too long.

    A single exchange that does not fit becomes a Drop or a truncated document without its end, depending on the layout.
    """
    # A source has one or a few distinct system texts, so each is encoded once.
    system_segments = {text: NUM_MARKERS + number for number, text in enumerate(dict.fromkeys(systems))}
    lead = tokenizer.format.turn_lead
    texts = [lead + message.text for conversation in conversations for message in conversation.messages]
    runs = tokenizer.encode_flat([*system_segments, *texts])
    marker_lengths = [len(marker) for marker in tokenizer.markers]
    lengths = marker_lengths + runs.lengths.tolist()
    segments: list[int] = []
    ends: list[int] = []
    pieces: list[list[_Piece]] = []
    message = NUM_MARKERS + len(system_segments)
    for conversation, system in zip(conversations, systems, strict=True):
        count = len(conversation.messages)
        fixed = lengths[SYSTEM] + lengths[system_segments[system]] + layout.end_token * lengths[END]
        pieces.append(_pieces(lengths[message : message + count], fixed, marker_lengths, layout.seq_len))
        for piece in pieces[-1]:
            segments += (SYSTEM, system_segments[system])
            for turn in range(message + 2 * piece.first, message + 2 * piece.stop, 2):
                opening = FIRST_USER if turn == message + 2 * piece.first else NEXT_USER
                segments += (opening, turn, ASSISTANT, turn + 1)
            if layout.end_token:
                segments.append(END)
            ends.append(len(segments))
        message += count
    documents = iter(_gathered(segments, ends, runs, len(system_segments), tokenizer, layout))
    return [
        [_finished(piece, *next(documents), conversation, marker_lengths[END], layout) for piece in cut]
        for conversation, cut in zip(conversations, pieces, strict=True)
    ]


def encode_prompt(messages: Sequence[Message], system: str, tokenizer: ChatTokenizer) -> list[int]:
    """The ids of a chat, up to and including the marker before the assistant's next turn."""
    lead = tokenizer.format.turn_lead
    texts = tokenizer.encode([system, *(lead + message.text for message in messages)])
    ids: list[int] = []
    for number, text in enumerate(texts):
        ids += [*tokenizer.markers[marker_kind(number)].ids.tolist(), *text]
    return [*ids, *tokenizer.markers[ASSISTANT].ids.tolist()]


def _pieces(lengths: Sequence[int], fixed: int, marker_lengths: Sequence[int], seq_len: int) -> list[_Piece]:
    """Greedily fill pieces with whole exchanges; an exchange too long for any piece becomes a piece of its own."""
    num_exchanges = len(lengths) // 2
    first_user, later_user = (marker_lengths[kind] + marker_lengths[ASSISTANT] for kind in (FIRST_USER, NEXT_USER))
    total = fixed + sum(lengths) + first_user + (num_exchanges - 1) * later_user
    if total <= seq_len:
        return [_Piece(0, num_exchanges, total)]
    pieces = []
    first, length = 0, fixed
    for number in range(num_exchanges):
        texts = lengths[2 * number] + lengths[2 * number + 1]
        if first < number and length + later_user + texts > seq_len:
            pieces.append(_Piece(first, number, length))
            first, length = number, fixed
        length += texts + (first_user if number == first else later_user)
    return [*pieces, _Piece(first, num_exchanges, length)]


def _gathered(
    segments: list[int], ends: list[int], runs: TokenRuns, num_systems: int, tokenizer: ChatTokenizer, layout: Layout
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]]:
    """Ids, loss mask and turn starts of each document: the ids of its segments, concatenated."""
    source = np.concatenate([*(marker.ids for marker in tokenizer.markers), runs.ids])
    length = np.concatenate([[len(marker) for marker in tokenizer.markers], runs.lengths])
    start = np.cumsum(length) - length
    order = np.array(segments, np.int64)
    stop = np.cumsum(length[order])
    place = np.repeat(start[order] - stop + length[order], length[order]) + np.arange(stop[-1] if len(stop) else 0)
    ids = source[place]
    if layout.supervise == "assistant":
        mask = _source_loss(length, num_systems, tokenizer)[place]
    else:
        mask = np.ones(len(ids), np.uint8)
    is_text = order >= NUM_MARKERS
    text_starts, last_segments = (stop - length[order])[is_text], np.array(ends, np.int64) - 1
    text_ends = np.cumsum(is_text)[last_segments].tolist()
    begin = first = 0
    for end, last in zip(stop[last_segments].tolist(), text_ends, strict=True):
        if layout.supervise == "all":
            mask[begin] = 0  # a document's first token has no context, so it is never predicted
        yield ids[begin:end], mask[begin:end], text_starts[first:last] - begin
        begin, first = end, last


def _source_loss(length: NDArray[np.int64], num_systems: int, tokenizer: ChatTokenizer) -> NDArray[np.uint8]:
    """For each id of the markers and texts, whether it has loss."""
    loss = np.zeros(len(length), np.uint8)
    loss[NUM_MARKERS + num_systems + 1 :: 2] = 1  # every second message is the assistant's
    by_id = np.repeat(loss, length)
    begin = 0
    for marker in tokenizer.markers:
        by_id[begin : begin + marker.num_learnt] = 1
        begin += len(marker)
    return by_id


def _finished(
    piece: _Piece,
    ids: NDArray[Any],
    mask: NDArray[np.uint8],
    turn_starts: NDArray[np.int64],
    conversation: Conversation,
    end_length: int,
    layout: Layout,
) -> Encoded | Drop:
    answers = tuple([message.text for message in conversation.messages[2 * piece.first + 1 : 2 * piece.stop : 2]])
    if piece.num_tokens <= layout.seq_len:
        return Encoded(ids, mask, turn_starts, answers, piece.first)
    if layout.too_long == "drop":
        return Drop(Reason.TOO_LONG, f"{piece.num_tokens} tokens, at most {layout.seq_len}")
    if turn_starts[-1] >= layout.seq_len:
        return Drop(Reason.NO_SUPERVISED_TOKENS, f"the question alone fills {layout.seq_len} tokens")
    # The cut is inside the answer, or right after it if only the end marker does not fit.
    length = min(layout.seq_len, piece.num_tokens - layout.end_token * end_length)
    return Encoded(ids[:length], mask[:length], turn_starts, answers, piece.first, truncated=True)
