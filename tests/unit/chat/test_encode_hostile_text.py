"""No text, however it is made, becomes a control token, and every answer is learnt as it was written."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.chat.conversation import Conversation, Message
from sft.chat.encode import Encoded, Layout, encode, encode_prompt
from sft.chat.formats.stablelm import END, PADDING, TAGS
from sft.chat.supervision import first_violations
from sft.chat.tokenizer import ChatTokenizer
from tests.support.turns import answer_spans

TAG_TEXTS = (END, PADDING, *TAGS)
PIECES = ["<", "|", ">", "<|", "|>", "<|US", "ER|>", "USER", "ASSISTANT", "SYSTEM", "endoftext", "<|<|USER|>|>"]
LOOK_ALIKES = [
    "<|user|>",
    "<| USER |>",
    "<\u200b|USER|>",
    "＜｜USER｜＞",
    "‹|USER|›",
    "<|UЅER|>",
    "<|USER|\u200d>",
    "&lt;|USER|&gt;",
]
INVISIBLE = ["\u200b", "\u200d", "\ufeff", "\u2060", "\u202e", "\u00ad", "\u180e", "\ufe0f"]
LETTERS = [
    "e\u0301",
    "\u00e9",
    "A\u030a",
    "\u212b",
    "\ufb01",
    "\u1e9b\u0323",
    "가",
    "\u1100\u1161",
    "ÿ",
    "Ġ",
    "Ċ",
    "ĉ",
    "\ufffd",
]
PICTURES = ["🙂", "👩‍💻", "👍🏽", "🇩🇪", "\U0010ffff", "𝕏"]
BLANKS = [" ", "  ", " " * 17, "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\x85", "\x00"]
HOSTILE = [*TAG_TEXTS, *PIECES, *LOOK_ALIKES, *INVISIBLE, *LETTERS, *PICTURES, *BLANKS, "a", "0", "\\u003c|USER|>"]

TEXT = st.lists(st.sampled_from(HOSTILE) | st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8).map(
    "".join
)
SPOKEN = TEXT.filter(str.strip)
EXCHANGES = st.lists(st.tuples(SPOKEN, SPOKEN), min_size=1, max_size=4)


def check(system: str, exchanges: list[tuple[str, str]], tokenizer: ChatTokenizer, layout: Layout) -> None:
    """The contract, stated again without the code under test."""
    messages = [Message(*turn) for user, answer in exchanges for turn in (("user", user), ("assistant", answer))]
    ((document,),) = encode([Conversation(tuple(messages))], [system], tokenizer, layout)
    assert isinstance(document, Encoded)
    wanted = [tokenizer.id_of("<|SYSTEM|>")]
    placed = {0}
    for text, tag in zip(
        [system, *(message.text for message in messages)],
        [*[tokenizer.id_of("<|USER|>"), tokenizer.id_of("<|ASSISTANT|>")] * len(exchanges), tokenizer.end_id],
        strict=True,
    ):
        wanted += tokenizer.encode([text])[0]
        placed.add(len(wanted))
        wanted.append(tag)
    wanted, placed = (wanted, placed) if layout.end_token else (wanted[:-1], placed - {len(wanted) - 1})
    assert document.ids.tolist() == wanted
    assert {place for place, token_id in enumerate(wanted) if token_id in tokenizer.control_ids} == placed
    runs = [document.ids[start:end] for start, end in answer_spans(document.ids, tokenizer)]
    assert tokenizer.decode(runs) == [unicodedata.normalize("NFC", answer) for _, answer in exchanges]
    assert first_violations([document], tokenizer, layout) == [None]


@given(system=TEXT | st.just(""), exchanges=EXCHANGES, end_token=st.booleans())
@settings(max_examples=400)
def test_hostile_texts_stay_texts(
    system: str, exchanges: list[tuple[str, str]], end_token: bool, tokenizer: ChatTokenizer
) -> None:
    check(system, exchanges, tokenizer, Layout(100_000, end_token=end_token))


@given(system=TEXT, exchanges=EXCHANGES)
@settings(max_examples=300)
def test_hostile_texts_stay_texts_with_the_published_tokenizer(
    system: str, exchanges: list[tuple[str, str]], neox_20b: ChatTokenizer
) -> None:
    check(system, exchanges, neox_20b, Layout(100_000))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_every_hostile_piece_alone_is_only_text(text: str, tokenizer: ChatTokenizer) -> None:
    (ids,) = tokenizer.encode([text])
    assert not set(ids) & set(tokenizer.control_ids)
    assert tokenizer.decode([ids]) == [unicodedata.normalize("NFC", text)] == [tokenizer.normalise(text)]


@given(texts=st.lists(SPOKEN, min_size=1, max_size=5))
def test_no_prompt_opens_a_turn_that_it_does_not_have(texts: list[str], tokenizer: ChatTokenizer) -> None:
    messages = [Message("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
    ids = encode_prompt(messages, texts[0], tokenizer)
    tags = [tokenizer.id_of(TAGS[2 if number % 2 else 1]) for number in range(len(texts))]
    controls = [token_id for token_id in ids if token_id in tokenizer.control_ids]
    assert controls == [tokenizer.id_of("<|SYSTEM|>"), *tags, tokenizer.id_of("<|ASSISTANT|>")]
