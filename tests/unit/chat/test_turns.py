"""Where the texts of documents begin and end."""

import numpy as np
import pytest

from sft.chat.conversation import Conversation, Message
from sft.chat.encode import Encoded, Layout, encode
from sft.chat.formats.base import ChatFormat
from sft.chat.formats.stablelm import STABLELM
from sft.chat.tokenizer import ChatTokenizer, train_tokenizer
from sft.chat.turns import Turns, marker_starts, read_turn_starts, read_turns, text_spans
from tests.support.plain_format import PLAIN

TEXTS = ("Hi", "Yo.", "2?", "<|USER|> 3")


def encoded(tokenizer: ChatTokenizer, layout: Layout, *texts: str) -> Encoded:
    talk = Conversation(tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)))
    ((document,),) = encode([talk], ["Sys"], tokenizer, layout)
    assert isinstance(document, Encoded)
    return document


@pytest.mark.parametrize("chat_format", [STABLELM, PLAIN], ids=["stablelm", "plain"])
@pytest.mark.parametrize("layout", [Layout(1000), Layout(1000, end_token=False)], ids=["with end", "no end"])
def test_the_texts_stand_between_the_markers(layout: Layout, chat_format: ChatFormat) -> None:
    tokenizer = train_tokenizer([], 261, chat_format)
    document = encoded(tokenizer, layout, *TEXTS)
    spans = text_spans(document.ids, document.turn_starts, tokenizer)
    lead = chat_format.turn_lead
    assert tokenizer.decode([document.ids[a:b] for a, b in spans]) == ["Sys", *(lead + text for text in TEXTS)]
    begins = marker_starts(document.turn_starts, tokenizer)
    markers = tokenizer.decode([document.ids[a:b] for a, b in zip(begins, document.turn_starts, strict=True)])
    openings = (chat_format.system, chat_format.first_user, chat_format.assistant, chat_format.next_user)
    assert markers == [marker.text for marker in (*openings, chat_format.assistant)]


def test_a_truncated_text_ends_with_its_document(letters: ChatTokenizer) -> None:
    document = encoded(letters, Layout(9, "truncate"), "Hi", "Yo. and more")
    assert document.truncated
    assert text_spans(document.ids, document.turn_starts, letters)[-1] == (8, 9)


def test_what_was_written_down_is_what_the_ids_tell(letters: ChatTokenizer) -> None:
    documents = [encoded(letters, Layout(1000), *TEXTS[:count]) for count in (2, 4, 2)]
    ends = np.cumsum([len(document.ids) for document in documents])
    read = read_turns(np.concatenate([document.ids for document in documents]), ends, letters)
    assert read is not None
    assert read.counts_N.tolist() == [3, 5, 3]
    written = [document.turn_starts for document in documents]
    assert Turns.of(written, ends).differing(read) == []
    assert Turns.of([written[0], written[1][:-1], written[2] + 1], ends).differing(read) == [1, 2]


def test_a_tag_at_the_very_end_belongs_to_its_own_document(letters: ChatTokenizer) -> None:
    user = letters.id_of("<|USER|>")
    read = read_turns(np.array([5, user, user, 5, 5]), np.array([2, 5]), letters)
    assert read is not None
    assert (read.starts_X.tolist(), read.counts_N.tolist()) == ([2, 3], [1, 1])


def test_ids_of_a_format_without_tags_tell_no_turns() -> None:
    tokenizer = train_tokenizer([], 258, PLAIN)
    assert read_turns(np.array([5, 0]), np.array([2]), tokenizer) is None
    assert read_turn_starts(np.array([5, 0]), tokenizer).tolist() == []
