"""Packs are chosen so that every source is seen, and spelled out token by token."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from sft.chat.tokenizer import ChatTokenizer
from sft.data.report.pack_browser import BORDER, Contents, PackTexts, choose, visible
from sft.data.shards import Pack, Shards, Split
from tests.support.manifests import split_facts


def contents(num_packs: int, per_pack: int) -> Contents:
    return Contents(
        np.arange(num_packs * per_pack), np.full(num_packs, per_pack), np.full(num_packs, 4096, dtype=np.int64)
    )


def test_packs_of_every_source_are_spread_over_the_split() -> None:
    source = np.repeat([0, 1, 0, 2], [90, 110, 99, 1])
    chosen = choose(contents(100, 3), source, 4, 10**9)
    assert chosen == [0, 20, 30, 42, 54, 66, 78, 99] or {0, 30, 66, 99} <= set(chosen)
    assert {int(source[3 * pack + place]) for pack in chosen for place in range(3)} == {0, 1, 2}


@pytest.mark.parametrize(("room", "count"), [(10**9, 8), (100_000, 3), (1, 1)])
def test_no_more_packs_are_chosen_than_there_is_room_for(room: int, count: int) -> None:
    assert len(choose(contents(1000, 3), np.arange(3000) % 3, 8, room)) == count


def test_a_split_without_packs_shows_none() -> None:
    assert choose(contents(0, 3), np.zeros(0, np.int64), 8, 10**9) == []


def test_contents_are_those_of_the_packs_and_no_pack_is_made(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Shards.open(tiny_shards).split("train")
    packs = [split[index] for index in range(len(split))]
    monkeypatch.delattr(Split, "__getitem__")
    found = Contents.of(split)
    assert found.doc_ids_N.tolist() == [doc_id for pack in packs for doc_id in pack.doc_ids_N]
    assert found.num_documents_P.tolist() == [len(pack.doc_ids_N) for pack in packs]
    assert found.num_tokens_P.tolist() == [pack.num_tokens for pack in packs]


def test_a_split_without_packs_has_no_contents(tmp_path: Path) -> None:
    found = Contents.of(Split(tmp_path, "valid", replace(split_facts("none", []), shards=())))
    assert [len(column) for column in (found.doc_ids_N, found.num_documents_P, found.num_tokens_P)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\tb", "a\n\tb"),
        ("\x1b[31m\x00\r\x7f", "\\u001b[31m\\u0000\\u000d\\u007f"),
        ("\u202eabc\u2066\u2028", "\\u202eabc\\u2066\\u2028"),
        ("\x9b\ud800", "\\u009b\\ud800"),
        ("Grüße 你好 👩‍🚀", "Grüße 你好 👩‍🚀"),
    ],
)
def test_control_characters_are_shown_and_do_nothing(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def spelled(tokenizer: ChatTokenizer, question: str, answer: str) -> dict[str, Any]:
    asked, answered = tokenizer.encode([question, answer])
    head = [tokenizer.id_of("<|SYSTEM|>"), tokenizer.id_of("<|USER|>"), *asked, tokenizer.id_of("<|ASSISTANT|>")]
    ids = np.array([*head, *answered, tokenizer.end_id, tokenizer.pad_id])
    mask = (np.arange(len(ids)) >= len(head)) & (np.arange(len(ids)) < len(ids) - 1)
    pack = Pack(ids, mask.astype(np.uint8), np.array([len(ids) - 1]), np.array([0]), int(mask.sum()))
    column = np.array([3])
    names = ("source", "file", "row", "piece", "first_turn", "uses", "truncated")
    documents = SimpleNamespace(**dict.fromkeys(names, column))
    starts = np.array([1, 2, len(head)])
    shards = SimpleNamespace(documents=documents, turn_starts=lambda *_: starts)
    return PackTexts(cast(Shards, shards), tokenizer, [pack]).facts(5, pack)


@pytest.mark.parametrize(
    "answer", ["Four apples.", "你好，世界 ça va 👩‍🚀", "\x1b]0;owned\x07\u202e\u2028", "<|USER|>"]
)
def test_runs_spell_the_tokens_and_their_borders(answer: str, tokenizer: ChatTokenizer) -> None:
    facts = spelled(tokenizer, "How many?", answer)
    assert (facts["index"], facts["padding"]) == (5, 1)
    (document,) = facts["documents"]
    assert (document["row"], document["turn"], document["truncated"]) == (3, 3, True)
    assert [run[0] for run in document["runs"]] == ["t", "u", "t", "A", "E"]
    run = document["runs"][3][1:]
    assert run.replace(BORDER, "") == visible(answer)
    num_tokens = len(tokenizer.encode([answer])[0])
    # Tokens that are parts of characters stand together.
    whole = answer.isascii()
    assert len(run.split(BORDER)) == num_tokens if whole else 1 < len(run.split(BORDER)) < num_tokens
