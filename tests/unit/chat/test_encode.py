"""Conversation to tokens: the layouts are written out by hand in tests/golden/encode/."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.chat.conversation import Conversation, Drop, Message, Reason
from sft.chat.encode import Encoded, Layout, encode, encode_prompt
from sft.chat.formats.stablelm import CARD_SYSTEM_PROMPT
from sft.chat.tokenizer import ChatTokenizer

GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "encode").glob("*.txt"))


def conversation(*texts: str) -> Conversation:
    """The texts of user and assistant by turns."""
    return Conversation(tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)))


def encode_one(talk: Conversation, tokenizer: ChatTokenizer, layout: Layout, system: str = "S") -> list[Encoded | Drop]:
    (pieces,) = encode([talk], [system], tokenizer, layout)
    return pieces


# ------------------------------------------------------------------------------------------------ golden layouts


def read_case(path: Path) -> tuple[dict[str, Any], list[str], str]:
    """The settings (system and seq_len among them), the turns' texts and the expected documents of a golden file."""
    head, _, expected = path.read_text(encoding="utf-8").partition("\n\n")
    options: dict[str, Any] = {"seq_len": 100}
    texts = []
    for line in head.splitlines()[1:]:
        key, _, value = line.partition(":")
        if key in ("system", "user", "assistant"):
            text = json.loads(f'"{value[1:]}"')
            if key == "system":
                options[key] = text
            else:
                texts.append(text)
        else:
            options[key] = value.strip() if key in ("supervise", "too_long") else json.loads(value)
    return options, texts, expected.rstrip("\n")


def drawn(piece: Encoded | Drop, tokenizer: ChatTokenizer) -> str:
    """A document as its tokens' names, with marks under those that carry loss."""
    if isinstance(piece, Drop):
        return f"drop {piece.reason}: {piece.detail}"
    names = [tokenizer.name(token_id) for token_id in piece.ids.tolist()]
    marks = [("^" if mask else " ") * len(name) for name, mask in zip(names, piece.loss_mask, strict=True)]
    title = "document, truncated" if piece.truncated else "document"
    return f"{title}\n{' '.join(names)}\n{' '.join(marks).rstrip()}"


def test_the_golden_layouts_are_there() -> None:
    assert len(GOLDEN) >= 18


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_layout_is_the_one_written_by_hand(path: Path, letters: ChatTokenizer) -> None:
    options, texts, expected = read_case(path)
    system = options.pop("system")
    pieces = encode_one(conversation(*texts), letters, Layout(**options), system)
    assert "\n\n".join(drawn(piece, letters) for piece in pieces) == expected


# ------------------------------------------------------------------------------------------------ nothing is lost

WORD = st.text("ab <|>\n\u00fc", min_size=1, max_size=12).filter(str.strip)
TALKS = st.lists(st.tuples(WORD, WORD), min_size=1, max_size=6).map(
    lambda exchanges: conversation(*(text for exchange in exchanges for text in exchange))
)
LAYOUTS = st.builds(
    Layout,
    seq_len=st.integers(4, 60),
    too_long=st.sampled_from(["drop", "truncate"]),
    supervise=st.sampled_from(["assistant", "all"]),
    end_token=st.booleans(),
)


def whole_length(exchange: tuple[str, str], system: str, tokenizer: ChatTokenizer, layout: Layout) -> int:
    ids = tokenizer.encode([system, *exchange])
    return 3 + sum(map(len, ids)) + layout.end_token


@given(talk=TALKS, layout=LAYOUTS)
@settings(max_examples=300)
def test_every_exchange_is_in_one_piece_or_accounted_for(
    talk: Conversation, layout: Layout, letters: ChatTokenizer
) -> None:
    pieces = encode_one(talk, letters, layout)
    left = list(talk.exchanges)
    for piece in pieces:
        if isinstance(piece, Drop):
            assert whole_length(left[0], "S", letters, layout) > layout.seq_len
            left = left[1:]
            continue
        assert len(piece.ids) == len(piece.loss_mask) <= layout.seq_len
        mine, left = left[: len(piece.answers)], left[len(piece.answers) :]
        assert piece.answers == tuple(answer for _, answer in mine)
        turns = [letters.normalise(text) for exchange in mine for text in exchange]
        text = "".join(tag + turn for tag, turn in zip(["<|USER|>", "<|ASSISTANT|>"] * len(mine), turns, strict=True))
        whole = f"<|SYSTEM|>S{text}{'<|endoftext|>' if layout.end_token else ''}"
        (spelt,) = letters.decode([piece.ids])
        if piece.truncated:
            assert layout.too_long == "truncate"
            assert len(mine) == 1
            assert len(piece.ids) == layout.seq_len < whole_length(mine[0], "S", letters, layout)
            assert whole.startswith(spelt.rstrip("\ufffd"))
        else:
            assert spelt == whole
    assert left == []


@given(talk=TALKS, layout=LAYOUTS)
@settings(max_examples=200)
def test_pieces_are_as_few_as_can_be(talk: Conversation, layout: Layout, letters: ChatTokenizer) -> None:
    """Two whole pieces in a row could not have been one."""
    pieces = encode_one(talk, letters, layout)
    for first, second in itertools.pairwise(pieces):
        if isinstance(first, Encoded) and isinstance(second, Encoded) and not (first.truncated or second.truncated):
            (answer,) = letters.encode([second.answers[0]])
            question_ends = second.ids.tolist().index(letters.id_of("<|ASSISTANT|>")) + 1
            next_exchange = (question_ends - len("<S")) + len(answer)
            assert len(first.ids) + next_exchange > layout.seq_len


@given(talks=st.lists(TALKS, max_size=4), layout=LAYOUTS)
@settings(max_examples=50)
def test_a_batch_is_encoded_like_one_by_one(
    talks: list[Conversation], layout: Layout, tokenizer: ChatTokenizer
) -> None:
    systems = [f"system {number % 2}" for number in range(len(talks))]
    together = list(encode(talks, systems, tokenizer, layout))
    apart = [encode_one(talk, tokenizer, layout, system) for talk, system in zip(talks, systems, strict=True)]
    assert [list(shown(pieces)) for pieces in together] == [list(shown(pieces)) for pieces in apart]


def shown(pieces: Sequence[Encoded | Drop]) -> Iterator[object]:
    for piece in pieces:
        yield piece if isinstance(piece, Drop) else (piece.ids.tolist(), piece.loss_mask.tolist(), piece.answers)


def test_a_batch_of_unequal_length_is_refused(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(ValueError, match="zip"):
        list(encode([conversation("a", "b")], ["S", "S"], tokenizer, Layout(64)))


# ------------------------------------------------------------------------------------------------ prompts


@given(talk=TALKS)
def test_a_prompt_and_its_answer_and_end_are_the_document(talk: Conversation, tokenizer: ChatTokenizer) -> None:
    (document,) = encode_one(talk, tokenizer, Layout(10_000))
    assert isinstance(document, Encoded)
    prompt = encode_prompt(talk.messages[:-1], "S", tokenizer)
    (answer,) = tokenizer.encode([talk.messages[-1].text])
    assert [*prompt, *answer, tokenizer.end_id] == document.ids.tolist()


def test_what_generation_must_produce_is_what_carries_loss(tokenizer: ChatTokenizer) -> None:
    talk = conversation("How many apples?", "Four apples.", "And of seven?", "None are left.")
    (document,) = encode_one(talk, tokenizer, Layout(10_000))
    assert isinstance(document, Encoded)
    for turn in (1, 3):
        start = len(encode_prompt(talk.messages[:turn], "S", tokenizer))
        length = len(tokenizer.encode([talk.messages[turn].text])[0]) + 1
        assert document.loss_mask[start : start + length].all()
        assert not document.loss_mask[start - 1]


def test_the_card_s_prompt_ends_with_a_newline() -> None:
    assert CARD_SYSTEM_PROMPT.startswith("# StableLM Tuned (Alpha version)\n- StableLM is a helpful and harmless ")
    assert CARD_SYSTEM_PROMPT.endswith("\n- StableLM will refuse to participate in anything that could harm a human.\n")
    assert len(CARD_SYSTEM_PROMPT.splitlines()) == 5


def test_ids_and_mask_are_small_integers(tokenizer: ChatTokenizer) -> None:
    (document,) = encode_one(conversation("a", "b"), tokenizer, Layout(64))
    assert isinstance(document, Encoded)
    assert document.ids.dtype == np.uint32
    assert document.loss_mask.dtype == np.uint8


@pytest.mark.parametrize(("system", "seq_len"), [("Ssss", 4), ("S", 3), ("S", 5), ("S", 6)])
def test_a_document_without_its_answer_is_dropped_whatever_carries_loss(
    system: str, seq_len: int, letters: ChatTokenizer
) -> None:
    layout = Layout(seq_len, "truncate", "all")
    (piece,) = encode_one(conversation("Hi", "a long answer"), letters, layout, system)
    assert isinstance(piece, Drop)
    assert piece.reason is Reason.NO_SUPERVISED_TOKENS
