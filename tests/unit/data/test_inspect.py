"""Packs can be looked at: roles, loss, documents, and the row of a token."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sft.data.build import build
from sft.data.inspect import overview, show_pack, trace
from sft.data.shards import Shards
from sft.errors import ConfigError

TALKS = [["How many apples?", "Four [apples] are left."], ["And <|USER|> now?", "[/b] None."], ["only a question"]]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def folder(write_mixture: Callable[..., Any]) -> Path:
    raw = write_mixture(talks=TALKS + [[f"q {n}", f"a {n}"] for n in range(10)])
    return build(raw.config(), raw.recipes).folder


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_overview_tells_splits_sources_and_what_was_dropped(folder: Path, console: Console) -> None:
    overview(folder, console)
    shown = text(console)
    manifest = Shards.open(folder).manifest
    for split in ("train", "valid"):
        assert split in shown
        assert f"{manifest['splits'][split]['density']:.3%}" in shown
    assert manifest["content_digest"][:12] in shown
    assert "dropped from talks: no_exchange 1" in shown
    facts = manifest["sources"]["talks"]
    (row,) = (line for line in shown.splitlines() if line.startswith("│ talks"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:5] == [str(facts[name]) for name in ("rows_read", "rows_kept", "documents", "tokens")]
    assert cells[5] == f"{facts['supervised_tokens'] / facts['tokens']:.1%}"


def test_a_pack_is_shown_as_it_is_read_with_its_lineage(folder: Path, console: Console) -> None:
    split = Shards.open(folder).split("train")
    for index in range(len(split)):
        show_pack(folder, "train", index, console)
    shown = text(console).replace("\n", "")
    for question, answer in [row for row in TALKS if len(row) == 2]:
        assert f"<|SYSTEM|>Answer shortly.<|USER|>{question}<|ASSISTANT|>{answer}<|endoftext|>" in shown
    assert "talks: talks.jsonl, row 0" in shown
    first = split[0]
    counts = f"{len(first.doc_ids_D)} documents, {first.num_tokens} of 64 tokens, {first.num_supervised} with loss"
    assert f"train pack 0: {counts}" in shown


def test_loss_is_underlined_and_nothing_else(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=500, force_terminal=True, color_system="standard")
    show_pack(folder, "train", 0, console)
    pack = Shards.open(folder).split("train")[0]
    (marked,) = {part.split("m", 1)[1] for part in text(console).split("\x1b[4;")[1:2]}
    assert marked.split("\x1b")[0] in {answer for row in TALKS for answer in row[1:]} | {f"a {n}" for n in range(10)}
    assert pack.num_supervised > 0


def test_every_token_is_traced_to_its_row(folder: Path, console: Console) -> None:
    shards = Shards.open(folder)
    pack = shards.split("train")[0]
    rows = [json.dumps(row) for row in TALKS]
    assert rows
    for doc_id, place in pack.documents():
        for token in (place.start, place.stop - 1):
            console.file = io.StringIO()
            trace(folder, "train", 0, token, console)
            shown = text(console)
            assert f"token {token}: " in shown
            assert f"document {doc_id}" in shown
            assert f"from talks: talks.jsonl, row {shards.documents.row[doc_id]}\n" in shown
            assert ("with loss" in shown) is (token == place.stop - 1)


@pytest.mark.parametrize("token", [-1, 10_000])
def test_padding_leads_to_no_row(token: int, folder: Path, console: Console) -> None:
    with pytest.raises(ConfigError, match=f"token {token} of train pack 0 is padding or outside; it holds"):
        trace(folder, "train", 0, token, console)


@pytest.mark.parametrize("index", [-1, 10_000])
def test_a_pack_that_is_not_there_is_named(index: int, folder: Path, console: Console) -> None:
    with pytest.raises(ConfigError, match=f"no pack {index} in valid: it holds 1, numbered from 0"):
        show_pack(folder, "valid", index, console)
