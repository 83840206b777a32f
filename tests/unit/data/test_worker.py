"""A chunk of raw rows becomes documents; every row is a document, a skipped row or a rejected one."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.chat.conversation import Conversation, Message, Reason
from sft.chat.template import CARD_SYSTEM_PROMPT
from sft.chat.tokenizer import ChatTokenizer
from sft.config import BuildConfig
from sft.data.worker import Chunk, ChunkResult, Worker, digest, layout, system_text

WORDS = ["How many apples?", "Four apples are left."]


def row(*turns: Any) -> bytes:
    return json.dumps({"turns": list(turns)}).encode()


ROWS = [
    (0, row(*WORDS)),
    (1, row("only a question")),
    (2, b'{"turns": '),
    (4, b'{"turns": ["a", "\xff"]}'),
    (5, b'["a", "b"]'),
    (6, b'{"turn": ["a", "b"]}'),
    (7, row("a", "   ")),
    (8, row("a" * 300, "b")),
    (9, row("a" * 30, "b" * 20, "and?", "c" * 20, "more?", "d" * 20)),
    (11, row("x", "y", "z" * 300, "w", "last?", "yes")),
]
SEQ_LEN = 64


@pytest.fixture
def config(write_mixture: Callable[..., Any]) -> BuildConfig:
    return write_mixture(talks=[WORDS]).config(f"seq_len={SEQ_LEN}")


@pytest.fixture
def run(config: BuildConfig, tmp_path: Path) -> Callable[..., ChunkResult]:
    """Runs rows of the source `talks` with some of its settings replaced."""

    def run(rows: list[tuple[int, Any]], file: str = "talks.jsonl", **changes: Any) -> ChunkResult:
        source = replace(config.sources["talks"], **changes)
        return Worker(replace(config, sources={"talks": source}), tmp_path / "recipes").run(Chunk("talks", file, rows))

    return run


def test_every_row_is_kept_or_rejected_with_its_reason(run: Callable[..., ChunkResult]) -> None:
    result = run(ROWS)
    assert (result.source, result.file, result.num_rows, result.num_skipped) == ("talks", "talks.jsonl", 10, 0)
    assert [(item.row, item.piece, item.reason) for item in result.rejected] == [
        (1, None, Reason.NO_EXCHANGE),
        (2, None, Reason.INVALID_JSON),
        (4, None, Reason.INVALID_UTF8),
        (5, None, Reason.WRONG_SCHEMA),
        (6, None, Reason.WRONG_SCHEMA),
        (7, None, Reason.EMPTY_ASSISTANT),
        (8, 0, Reason.TOO_LONG),
        (11, 1, Reason.TOO_LONG),
    ]
    pieces = [(int(record["row"]), int(record["piece"])) for record in result.documents]
    assert [piece for piece in pieces if piece[0] != 9] == [(0, 0), (11, 0), (11, 2)]
    assert [piece for row_, piece in pieces if row_ == 9] == list(range(len(pieces) - 3))
    assert len(pieces) > 4
    assert result.num_truncated == 0


def test_documents_lie_end_to_end_in_row_order(run: Callable[..., ChunkResult], tokenizer: ChatTokenizer) -> None:
    result = run(ROWS)
    ends = np.cumsum(result.documents["num_tokens"])
    assert ends[-1] == len(result.ids) == len(result.loss_mask)
    assert (result.ids.dtype, result.loss_mask.dtype) == (np.uint16, np.uint8)
    order = result.documents[["row", "piece"]].tolist()
    assert order == sorted(order)
    starts = ends - result.documents["num_tokens"]
    assert (result.ids[starts] == tokenizer.system_id).all()
    assert (result.ids[ends - 1] == tokenizer.end_id).all()
    sums = [int(result.loss_mask[a:b].sum()) for a, b in zip(starts, ends, strict=True)]
    assert sums == result.documents["num_supervised"].tolist()
    (text,) = tokenizer.decode([result.ids[: ends[0]]])
    assert text == f"<|SYSTEM|>Answer shortly.<|USER|>{WORDS[0]}<|ASSISTANT|>{WORDS[1]}<|endoftext|>"


def test_an_excerpt_of_a_rejected_row_is_kept(run: Callable[..., ChunkResult]) -> None:
    found = {item.row: item.excerpt for item in run(ROWS).rejected}
    assert found[2] == '{"turns": '
    assert found[4] == '{"turns": ["a", "\ufffd"]}'
    assert found[8] == "a" * 200
    assert found[11] == "x"


def test_a_long_exchange_is_cut_if_the_recipe_says_so(
    run: Callable[..., ChunkResult], tokenizer: ChatTokenizer
) -> None:
    result = run([(3, row("a", "word " * 200))], too_long="truncate")
    assert (result.num_truncated, len(result.ids), result.rejected) == (1, SEQ_LEN, [])
    assert result.ids[-1] != tokenizer.end_id


def test_rows_in_another_language_are_rejected(run: Callable[..., ChunkResult]) -> None:
    german = row("Wie ziehe ich Tomaten auf dem Balkon?", "Wähle einen sonnigen Platz und gieße jeden Morgen.")
    english = row("How do I grow tomatoes on a balcony?", "Choose a sunny place and water them every morning.")
    result = run([(0, german), (1, english)], language="en", too_long="truncate")
    assert [(item.row, item.reason, item.detail) for item in result.rejected] == [
        (0, Reason.LANGUAGE, "de, expected en")
    ]


def test_a_chunk_without_rows_or_documents_is_empty(run: Callable[..., ChunkResult]) -> None:
    for rows in ([], [(0, b"")]):
        result = run(rows)
        assert (result.num_rows, len(result.ids), len(result.loss_mask), len(result.documents)) == (len(rows), 0, 0, 0)
        assert (result.ids.dtype, result.documents.dtype.names[0]) == (np.uint16, "row")


def test_how_rows_are_chunked_does_not_matter(run: Callable[..., ChunkResult]) -> None:
    whole, parts = run(ROWS), [run(ROWS[:3]), run(ROWS[3:9]), run(ROWS[9:])]
    assert whole.ids.tolist() == [token for part in parts for token in part.ids.tolist()]
    assert whole.documents.tolist() == [record for part in parts for record in part.documents.tolist()]
    assert whole.rejected == [item for part in parts for item in part.rejected]


# ------------------------------------------------------------------------------------------------ weight


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_a_share_of_the_rows_is_used(weight: float, run: Callable[..., ChunkResult]) -> None:
    rows = distinct_rows(2000)
    result = run(rows, weight=weight)
    assert result.num_skipped + len(result.documents) == 2000
    assert abs(len(result.documents) / 2000 - weight) < 0.04
    assert run(rows, weight=weight).documents["row"].tolist() == result.documents["row"].tolist()


def test_a_smaller_share_is_part_of_a_larger_one(run: Callable[..., ChunkResult]) -> None:
    rows = distinct_rows(300)
    small, large = (set(run(rows, weight=weight).documents["row"].tolist()) for weight in (0.2, 0.6))
    assert small < large


def test_the_chosen_rows_are_a_matter_of_their_content_alone(run: Callable[..., ChunkResult]) -> None:
    rows = distinct_rows(100)
    moved = [(number + 7, content) for number, content in rows]
    first = run(rows, file="a.json", weight=0.5).documents["row"]
    second = run(moved, file="b.json", weight=0.5).documents["row"]
    assert (second - first).tolist() == [7] * len(first)


def test_the_chosen_rows_never_change(run: Callable[..., ChunkResult]) -> None:
    rows = distinct_rows(40)
    wanted = [number for number, content in rows if content_key(content) < 2**62]
    assert 0 < len(wanted) < 40
    assert run(rows, weight=0.25).documents["row"].tolist() == wanted


def test_an_unreadable_row_is_told_whatever_the_weight(run: Callable[..., ChunkResult]) -> None:
    result = run([(number, b"broken") for number in range(100)], weight=0.3)
    assert (result.num_skipped, len(result.rejected)) == (0, 100)


def distinct_rows(count: int) -> list[tuple[int, bytes]]:
    question, answer = WORDS
    return [(number, row(f"{question} {number}", answer)) for number in range(count)]


def content_key(content: bytes) -> int:
    """The first 64 bits of the hash of a row's values in sorted order."""
    text = json.dumps(json.loads(content), sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)


# ------------------------------------------------------------------------------------------------ parts


def talk(*texts: str, system: str | None = None) -> Conversation:
    messages = tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts))
    return Conversation(messages, system)


def test_the_digest_is_that_of_the_turns() -> None:
    assert digest(talk("a", "b")) == digest(talk("a", "b", system="S"))
    others = [("a", "c"), ("b", "a"), ("a", "b", "c", "d"), ('a", "b', "c"), ("a ", "b")]
    assert len({digest(talk(*texts)) for texts in [("a", "b"), *others]}) == 6
    assert digest(talk("a", "b")) == int(hashlib.sha256(b'["a", "b"]').hexdigest()[:16], 16)


@pytest.mark.parametrize(
    ("mixture", "recipe", "own", "expected"),
    [
        ("recipe", "R", None, "R"),
        ("recipe", "R", "own", "own"),
        ("recipe", "R", "", ""),
        ("recipe", "card", None, CARD_SYSTEM_PROMPT),
        ("recipe", "R", "card", CARD_SYSTEM_PROMPT),
        ("card", "R", "own", CARD_SYSTEM_PROMPT),
    ],
)
def test_the_system_text_is_the_mixture_s_then_the_row_s_then_the_recipe_s(
    mixture: Any, recipe: str, own: str | None, expected: str, config: BuildConfig
) -> None:
    source = replace(config.sources["talks"], system=recipe)
    assert system_text(replace(config, system=mixture), source, talk("a", "b", system=own)) == expected


def test_the_layout_follows_mixture_and_recipe(config: BuildConfig) -> None:
    changed = replace(config, seq_len=32, supervise="all", end_token=False)
    found = layout(changed, replace(config.sources["talks"], too_long="truncate"))
    assert (found.seq_len, found.too_long, found.supervise, found.end_token) == (32, "truncate", "all", False)


# ------------------------------------------------------------------------------------------------ broken recipes

BROKEN_RECIPES = {
    "raises": "def convert(row):\n    return row['no such column']\n",
    "returns nothing": "def convert(row):\n    pass\n",
    "returns text": "def convert(row):\n    return 'text'\n",
}


@pytest.mark.parametrize("code", BROKEN_RECIPES.values(), ids=BROKEN_RECIPES)
def test_a_recipe_that_fails_is_named_with_its_row(code: str, run: Callable[..., ChunkResult], tmp_path: Path) -> None:
    (tmp_path / "recipes" / "talks" / "convert.py").write_text(code)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run([(17, row(*WORDS))])
    assert "talks" in str(caught.value)
    assert "17" in str(caught.value)
