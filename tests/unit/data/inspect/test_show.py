"""Packs can be looked at: roles, loss, documents, the row of a token, and what became of a row."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sft.chat.tokenizer import ChatTokenizer
from sft.data.build.build import build
from sft.data.inspect.show import one_line, overview, show_pack, trace, trace_row
from sft.data.report.html import report
from sft.data.shards import KIND, SCHEMA_VERSION, Shards
from sft.errors import ConfigError, DataError
from sft.storage.manifest import write_manifest

TALKS = [["How many apples?", "Four [apples] are left."], ["And <|USER|> now?", "[/b] None."], ["only a question"]]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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
        assert f"{manifest.splits[split].density:.3%}" in shown
    assert manifest.content_digest[:12] in shown
    assert "dropped from talks: no_exchange 1" in shown
    facts = manifest.sources["talks"]
    (row,) = (line for line in shown.splitlines() if line.startswith("│ talks"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:5] == [str(n) for n in (facts.rows_read, facts.rows_kept, facts.documents, facts.tokens)]
    assert cells[5] == f"{facts.supervised_tokens / facts.tokens:.1%}"


LOOKS: dict[str, Callable[[Path, Console], object]] = {
    "pack": lambda folder, console: show_pack(folder, "train", 0, console),
    "trace": lambda folder, console: trace(folder, "train", 0, 0, console),
    "row": lambda folder, console: trace_row(folder, "talks:0", console),
    "overview": overview,
    "report": lambda folder, _: report(folder),
}


@pytest.mark.parametrize(
    ("look", "name"),
    [
        *((look, name) for look in LOOKS for name in ("documents.arrow", "tokenizer.json")),
        *((look, "quarantine.jsonl") for look in ("row", "report")),  # the others do not read it
    ],
)
def test_nothing_is_shown_of_a_build_with_a_flipped_bit(look: str, name: str, folder: Path, console: Console) -> None:
    flip_a_bit(folder / name)
    with pytest.raises(DataError, match=f"{name}: changed"):
        LOOKS[look](folder, console)
    assert text(console) == ""


@pytest.mark.parametrize("name", sorted(LOOKS.keys() - {"overview"}))
def test_packs_are_not_shown_from_a_changed_shard(name: str, folder: Path, console: Console) -> None:
    flip_a_bit(folder / "train-00000-of-00001.arrow")
    with pytest.raises(DataError, match=r"train-00000-of-00001\.arrow: changed"):
        LOOKS[name](folder, console)
    assert text(console) == ""


def test_names_cannot_command_the_terminal(folder: Path, console: Console) -> None:
    manifest = Shards.open(folder).manifest
    owned = replace(manifest, name="\x1b]0;owned\x07", sources={"[red]\x9b31m": manifest.sources["talks"]})
    write_manifest(folder, KIND, SCHEMA_VERSION, owned.to_json())
    overview(folder, console)
    assert {c for c in text(console) if not c.isprintable()} == {"\n"}
    assert "\\u001b]0;owned" in text(console)
    assert text(console).count("[red]\\u009b31m") == 2


def test_a_pack_is_shown_as_it_is_read_with_its_lineage(folder: Path, console: Console) -> None:
    split = Shards.open(folder).split("train")
    for index in range(len(split)):
        show_pack(folder, "train", index, console)
    shown = text(console).replace("\n", "")
    for question, answer in [row for row in TALKS if len(row) == 2]:
        assert f"<|SYSTEM|>Answer shortly.<|USER|>{question}<|ASSISTANT|>{answer}<|endoftext|>" in shown
    assert "talks: talks.jsonl, row 0" in shown
    first = split[0]
    counts = f"{len(first.doc_ids_N)} documents, {first.num_tokens} of 64 tokens, {first.num_supervised} with loss"
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
    for doc_id, place in pack.documents():
        for token in (place.start, place.stop - 1):
            console.file = io.StringIO()
            trace(folder, "train", 0, token, console)
            shown = text(console)
            assert f"token {token}: " in shown
            assert f"talks: talks.jsonl, row {shards.documents.row[doc_id]} (document {doc_id})\n" in shown
            assert f"digest  {int(shards.documents.digest[doc_id]):016x} of" in shown
            assert f"sha256 {shards.manifest.sources['talks'].raw_files[0].sha256}" in shown
            assert ("with loss" in shown) is (token == place.stop - 1)


@pytest.mark.parametrize("token", [-1, 10_000])
def test_padding_leads_to_no_row(token: int, folder: Path, console: Console) -> None:
    with pytest.raises(ConfigError, match=f"token {token} is padding or outside"):
        trace(folder, "train", 0, token, console)


@pytest.mark.parametrize("index", [-1, 10_000])
def test_a_pack_that_is_not_there_is_named(index: int, folder: Path, console: Console) -> None:
    with pytest.raises(ConfigError, match=f"no pack {index} in valid: it holds 1, numbered from 0"):
        show_pack(folder, "valid", index, console)


def test_a_token_is_shown_marked_in_the_text_around_it(folder: Path, console: Console) -> None:
    shards = Shards.open(folder)
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    _, place = next(shards.split("train")[0].documents())
    first_answer = int((shards.split("train")[0].loss_mask_T[place] == 1).argmax())
    trace(folder, "train", 0, first_answer - 1, console)
    shown = text(console)
    assert f"'<|ASSISTANT|>' (id {tokenizer.id_of('<|ASSISTANT|>')}), control token, without loss" in shown
    assert "»<|ASSISTANT|>«" in shown
    assert "assistant, exchange 0 of its conversation" in shown


def test_the_token_that_ends_an_answer_says_so(folder: Path, console: Console) -> None:
    _, place = next(Shards.open(folder).split("train")[0].documents())
    trace(folder, "train", 0, place.stop - 1, console)
    assert "control token, with loss: it ends the answer before it" in text(console)


def test_the_raw_row_is_shown_if_its_file_is_there(write_mixture: Callable[..., Any], console: Console) -> None:
    raw = write_mixture(talks=TALKS[:2])
    folder = build(raw.config(), raw.recipes).folder
    trace_row(folder, "talks:1", console, raw.sources_dir)
    assert text(console).endswith('raw row\n{"turns": ["And <|USER|> now?", "[/b] None."]}\n')


def test_no_raw_row_is_shown_from_a_file_that_changed(write_mixture: Callable[..., Any], console: Console) -> None:
    raw = write_mixture(talks=TALKS[:2])
    folder = build(raw.config(), raw.recipes).folder
    (raw.sources_dir / "talks.jsonl").write_text('{"turns": ["x", "y"]}\n')
    with pytest.raises(DataError, match="is not the file that was built from"):
        trace_row(folder, "talks:0", console, raw.sources_dir)
    assert text(console) == ""


def test_a_kept_row_names_its_packs(folder: Path, console: Console) -> None:
    shards = Shards.open(folder)
    pack = shards.split("train")[0]
    doc_id, place = next(pack.documents())
    trace_row(folder, f"talks:talks.jsonl:{shards.documents.row[doc_id]}", console)
    shown = text(console)
    assert ": kept as 1 document\n" in shown
    assert f"document {doc_id}: piece 0, from exchange 0 on, {place.stop} tokens" in shown
    assert f"train pack 0, tokens 0–{place.stop - 1}\n" in shown


def test_a_dropped_row_names_its_reason(folder: Path, console: Console) -> None:
    trace_row(folder, "talks:2", console)
    shown = text(console)
    assert "talks: talks.jsonl, row 2: dropped\n  no_exchange, 1 turns\n" in shown
    assert '{"turns": ["only a question"]}' in shown


def test_a_repeated_row_names_its_twin(write_mixture: Callable[..., Any], console: Console) -> None:
    raw = write_mixture(talks=[TALKS[0], TALKS[1], TALKS[0]])
    trace_row(build(raw.config(), raw.recipes).folder, "talks:2", console)
    assert "  duplicate, same turns as" in text(console)
    assert "  twin    talks:talks.jsonl:0 (similarity 1.0)" in text(console)


def test_a_row_left_out_names_the_setting(write_mixture: Callable[..., Any], console: Console) -> None:
    raw = write_mixture(talks=[[f"q {n}", f"a {n}"] for n in range(20)])
    shards = build(raw.config("sources.talks.num_conversations=3"), raw.recipes)
    row = next(n for n in range(20) if n not in shards.documents.row)
    trace_row(shards.folder, f"talks:{row}", console)
    assert "neither packed nor dropped: left out by num_conversations=3" in text(console)


def test_rows_cannot_command_the_terminal(write_mixture: Callable[..., Any], console: Console) -> None:
    raw = write_mixture(talks=[["Red \x9b31m?", "No \u202e :smile:."], ["\x1b[2Jonly a question"], ["And?", "Yes."]])
    folder = build(raw.config("sources.talks.repair=false", "valid_share=0"), raw.recipes).folder
    show_pack(folder, "train", 0, console)
    for row in (0, 1):
        trace_row(folder, f"talks:{row}", console, raw.sources_dir)
    for token in range(Shards.open(folder).split("train")[0].num_tokens):
        trace(folder, "train", 0, token, console)
    shown = text(console)
    assert {c for c in shown if not c.isprintable()} == {"\n"}
    assert "Red \\u009b31m?" in shown
    assert ":smile:" in shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("a\nb\tc", r"a\nb\tc"), ("\x1b[1m", r"\x1b[1m"), ("zero\u200bwidth", r"zero\u200bwidth"), ("Köln 你", "Köln 你")],
)
def test_what_cannot_be_seen_is_spelled_out(raw: str, shown: str) -> None:
    assert one_line(raw) == shown
