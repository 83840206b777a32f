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
from sft.chat.formats.stablelm import CARD_SYSTEM_PROMPT
from sft.chat.tokenizer import ChatTokenizer
from sft.config.data import BuildConfig
from sft.data.build.chunk import DOCUMENT_FIELDS, Chunk, ChunkResult
from sft.data.build.worker import Worker, layout, needs_signatures, system_text
from sft.data.dedup.minhash import NUM_BANDS, signature

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
        worker = Worker(replace(config, sources={"talks": source}), tmp_path / "recipes")
        return worker.run(Chunk("talks", file, rows, "chunk"))

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
    assert not result.documents["truncated"].any()


def test_a_piece_knows_which_exchange_of_its_conversation_it_begins_with(
    run: Callable[..., ChunkResult], tokenizer: ChatTokenizer
) -> None:
    short = [text for number in range(20) for text in (f"q{number}", "yes")]
    result = run([(9, row(*short)), ROWS[-1]])
    questions = {9: short[::2], 11: ["x", "z" * 300, "last?"]}
    ends = np.cumsum(result.documents["num_tokens"])
    firsts = []
    for record, end in zip(result.documents, ends, strict=True):
        (text,) = tokenizer.decode([result.ids[end - record["num_tokens"] : end]])
        first = text.split("<|USER|>")[1].split("<|ASSISTANT|>")[0]
        assert questions[int(record["row"])][int(record["first_turn"])] == first
        firsts.append((int(record["row"]), int(record["first_turn"])))
    assert firsts[-2:] == [(11, 0), (11, 2)]
    assert 3 < len(firsts) < 20


def test_pieces_of_a_conversation_share_its_digests(run: Callable[..., ChunkResult]) -> None:
    documents = run([*ROWS, (12, row("x", "another answer"))]).documents
    same = documents[documents["row"] == 11]
    assert len(set(same["digest"].tolist())) == len(set(same["group"].tolist())) == 1 < len(same)
    for name, differ in (("digest", True), ("group", False)):
        assert (documents[name][-1] != same[name][0]) == differ
    assert len(set(documents["group"].tolist())) == 3


def test_documents_lie_end_to_end_in_row_order(run: Callable[..., ChunkResult], tokenizer: ChatTokenizer) -> None:
    result = run(ROWS)
    ends = np.cumsum(result.documents["num_tokens"])
    assert ends[-1] == len(result.ids) == len(result.loss_mask)
    assert (result.ids.dtype, result.loss_mask.dtype) == (np.uint16, np.uint8)
    order = result.documents[["row", "piece"]].tolist()
    assert order == sorted(order)
    starts = ends - result.documents["num_tokens"]
    assert (result.ids[starts] == tokenizer.id_of("<|SYSTEM|>")).all()
    assert (result.ids[ends - 1] == tokenizer.end_id).all()
    sums = [int(result.loss_mask[a:b].sum()) for a, b in zip(starts, ends, strict=True)]
    assert sums == result.documents["num_supervised"].tolist()
    (text,) = tokenizer.decode([result.ids[: ends[0]]])
    assert text == f"<|SYSTEM|>Answer shortly.<|USER|>{WORDS[0]}<|ASSISTANT|>{WORDS[1]}<|endoftext|>"


def test_a_conversation_of_very_many_exchanges_stops_no_build(config: BuildConfig, tmp_path: Path) -> None:
    rows = [(0, row(*["a", "b"] * 70_000)), (1, row(*WORDS))]
    result = Worker(replace(config, seq_len=4096), tmp_path / "recipes").run(Chunk("talks", "t.jsonl", rows, "chunk"))
    documents = result.documents[result.documents["row"] == 0]
    assert len(documents) > 60 or [item.row for item in result.rejected] == [0]
    assert (np.diff(documents["first_turn"].astype(np.int64)) > 0).all()
    assert result.documents["row"][-1] == 1


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
    assert result.documents["truncated"].tolist() == [True]


def test_a_row_of_more_bytes_than_allowed_is_rejected_unread(config: BuildConfig, tmp_path: Path) -> None:
    limited = Worker(replace(config, max_row_bytes=60), tmp_path / "recipes")
    largest = row("q", "a" * 40)
    assert len(largest) == 60
    result = limited.run(Chunk("talks", "t.jsonl", [(0, largest), (1, largest + b" "), (2, b"{" * 61)], "chunk"))
    assert result.documents["row"].tolist() == [0]
    assert [(item.row, item.reason) for item in result.rejected] == [
        (1, Reason.ROW_TOO_LARGE),
        (2, Reason.ROW_TOO_LARGE),
    ]


def test_rows_in_another_language_are_rejected(run: Callable[..., ChunkResult]) -> None:
    german = row("Wie ziehe ich Tomaten auf dem Balkon?", "Wähle einen sonnigen Platz und gieße jeden Morgen.")
    english = row("How do I grow tomatoes on a balcony?", "Choose a sunny place and water them every morning.")
    result = run([(0, german), (1, english)], language="en", too_long="truncate")
    assert [(item.row, item.reason, item.detail) for item in result.rejected] == [
        (0, Reason.LANGUAGE, "reads as 'de', expected 'en'")
    ]


def test_a_unit_without_rows_or_documents_is_empty(run: Callable[..., ChunkResult]) -> None:
    for rows in ([], [(0, b"")]):
        result = run(rows)
        assert (result.num_rows, len(result.ids), len(result.loss_mask), len(result.documents)) == (len(rows), 0, 0, 0)
        assert (result.ids.dtype, result.loss_mask.dtype) == (np.uint16, np.uint8)
        assert (result.documents.dtype, result.bands.shape) == (DOCUMENT_FIELDS, (0, NUM_BANDS))


def test_how_rows_are_cut_into_units_does_not_matter(run: Callable[..., ChunkResult]) -> None:
    whole, parts = run(ROWS), [run(ROWS[:3]), run(ROWS[3:9]), run(ROWS[9:])]
    assert whole.ids.tolist() == [token for part in parts for token in part.ids.tolist()]
    assert whole.documents.tolist() == [record for part in parts for record in part.documents.tolist()]
    assert whole.rejected == [item for part in parts for item in part.rejected]


# ------------------------------------------------------------------------------------------------ stages


def test_what_a_stage_changed_is_counted(run: Callable[..., ChunkResult], tokenizer: ChatTokenizer) -> None:
    garbled = "Grüße aus Köln, ça va?".encode().decode("latin-1")
    result = run([(0, row("How are you?", garbled)), (1, row(*WORDS))])
    assert result.changed == {"repair": 1}
    assert "Grüße aus Köln" in tokenizer.decode([result.ids])[0]
    kept = run([(0, row("How are you?", garbled))], repair=False)
    assert kept.changed == {}
    assert garbled in tokenizer.decode([kept.ids])[0]


def test_every_conversation_that_has_documents_is_signed_if_near_duplicates_are_searched(
    run: Callable[..., ChunkResult],
) -> None:
    assert run(ROWS).bands.shape == (0, NUM_BANDS)
    result = run(ROWS, near_duplicates=0.8)
    conversations = [WORDS, [text for _, raw in ROWS[-2:-1] for text in json.loads(raw)["turns"]]]
    conversations.append(json.loads(ROWS[-1][1])["turns"])
    assert result.bands.tolist() == [np.asarray(signature(turns)).tolist() for turns in conversations]
    assert len(result.bands) == len(set(result.documents["row"].tolist()))


def test_one_source_that_is_searched_has_all_signed(config: BuildConfig) -> None:
    source = config.sources["talks"]
    searched = replace(source, near_duplicates=0.9)
    assert not needs_signatures(replace(config, sources={"one": source, "two": source}))
    assert needs_signatures(replace(config, sources={"one": source, "two": searched}))


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
    wanted = [number for number, content in rows if question_key(content) < 2**62]
    assert 0 < len(wanted) < 40
    assert run(rows, weight=0.25).documents["row"].tolist() == wanted


def test_another_seed_chooses_other_rows(config: BuildConfig, tmp_path: Path) -> None:
    source = {"talks": replace(config.sources["talks"], weight=0.5)}
    first, second = (
        set(
            Worker(replace(config, seed=seed, sources=source), tmp_path / "recipes")
            .run(Chunk("talks", "t.jsonl", distinct_rows(400), "chunk"))
            .documents["row"]
            .tolist()
        )
        for seed in (0, 1)
    )
    assert 60 < len(first & second) < 140  # 100 by chance


def test_rows_that_open_alike_are_chosen_together(run: Callable[..., ChunkResult]) -> None:
    rows = [(2 * n + k, row(f"{WORDS[0]} {n}", f"answer {k}")) for n in range(50) for k in (0, 1)]
    found = run(rows, weight=0.5).documents["row"]
    assert 20 < len(found) < 80
    assert found[::2].tolist() == (found[1::2] - 1).tolist()


def test_an_unreadable_row_is_told_whatever_the_weight(run: Callable[..., ChunkResult]) -> None:
    result = run([(number, b"broken") for number in range(100)], weight=0.3)
    assert (result.num_skipped, len(result.rejected)) == (0, 100)


def distinct_rows(count: int) -> list[tuple[int, bytes]]:
    question, answer = WORDS
    return [(number, row(f"{question} {number}", answer)) for number in range(count)]


def question_key(content: bytes) -> int:
    """The first 64 bits of the hash of a row's first question, scattered by the multiplier of seed 0."""
    question = json.loads(content)["turns"][0].casefold()
    return int(hashlib.sha256(question.encode()).hexdigest()[:16], 16) * 0x9E3779B97F4A7C15 % 2**64


# ------------------------------------------------------------------------------------------------ parts


def talk(*texts: str, system: str | None = None) -> Conversation:
    messages = tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts))
    return Conversation(messages, system)


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
