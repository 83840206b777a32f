"""Every token leads to its row, and every row to its packs or to the reason why it is in none."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sft.chat.tokenizer import ChatTokenizer
from sft.data.build.build import build
from sft.data.build.corpus import RowId
from sft.data.inspect.lineage import parse_place, raw_row, row_fate, rows_of_packs, spans, token_origin
from sft.data.manifest import RawFile
from sft.data.shards import Shards
from sft.errors import ConfigError

LONG = [text for turn in range(8) for text in (f"question number {turn}?", f"answer number {turn}.")]


@pytest.fixture
def raw(write_mixture: Callable[..., Any]) -> Any:
    """Two sources, one with a conversation that is cut into pieces, both with a row that is dropped."""
    return write_mixture(
        talks=[LONG, ["only a question"], *([f"q {n}", f"a {n}"] for n in range(30))],
        others=[[f"other {n}", f"a {n}", f"again {n}", f"b {n}"] for n in range(12)] + [["nothing"]],
    )


@pytest.fixture
def shards(raw: Any) -> Shards:
    return build(raw.config("sources.others.epochs=2", "packs_per_shard=3"), raw.recipes)


def test_the_spans_of_all_documents_are_the_packs(shards: Shards) -> None:
    found = spans(shards, np.arange(len(shards.documents)))
    expected = [
        (doc_id, name, number, place.start, place.stop)
        for name in shards.manifest.splits
        for number in range(len(shards.split(name)))
        for doc_id, place in shards.split(name)[number].documents()
    ]
    assert [(s.doc_id, s.split, s.pack, s.start, s.stop) for s in found] == expected
    assert len(expected) == int(shards.documents.uses.sum()) > len(shards.documents)


def test_documents_not_asked_for_are_not_found(shards: Shards) -> None:
    assert spans(shards, np.zeros(0, np.int64)) == []
    assert {span.doc_id for span in spans(shards, np.array([3, 5]))} == {3, 5}


def test_the_rows_of_packs_come_in_the_order_asked_for(shards: Shards) -> None:
    found = list(rows_of_packs(shards, "train", [2, 0]))
    assert [span.pack for span in found] == sorted((span.pack for span in found), reverse=True)
    assert {span.doc_id for span in found} == {*map(int, shards.split("train")[0].doc_ids_N)} | {
        *map(int, shards.split("train")[2].doc_ids_N)
    }


def test_every_token_of_a_row_leads_back_to_its_turn(shards: Shards) -> None:
    """The pieces of a long conversation, read token by token, give its turns in order."""
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    fate = row_fate(shards, RowId("talks", "talks.jsonl", 0))
    assert len(fate.doc_ids) > 1
    texts: dict[tuple[str, int | None], bytes] = {}
    for span in fate.spans:
        pack = shards.split(span.split)[span.pack]
        for token in range(span.start, span.stop):
            origin = token_origin(shards, tokenizer, pack, token)
            assert origin.doc_id == span.doc_id
            assert origin.has_loss == bool(pack.loss_mask_T[token])
            if not origin.is_control and origin.role != "system":
                key = (origin.role, origin.exchange)
                texts[key] = texts.get(key, b"") + origin.spelling
    assert texts == {
        (role, number // 2): LONG[number].encode()
        for number in range(len(LONG))
        for role in [("user", "assistant")[number % 2]]
    }


def test_the_window_does_not_reach_into_another_document(shards: Shards) -> None:
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    pack = next(p for n in range(100) if len((p := shards.split("train")[n]).doc_ids_N) > 1)
    for _, place in pack.documents():
        assert token_origin(shards, tokenizer, pack, place.start).before == b""
        assert token_origin(shards, tokenizer, pack, place.stop - 1).after == b""


def test_every_row_is_accounted_for(shards: Shards) -> None:
    for name, num_rows in (("talks", 32), ("others", 13)):
        for row in range(num_rows):
            fate = row_fate(shards, RowId(name, f"{name}.jsonl", row))
            assert bool(fate.doc_ids) is not bool(fate.dropped)
            assert len(fate.spans) == int(shards.documents.uses[fate.doc_ids].sum())
            assert not fate.is_left_out


@pytest.mark.parametrize("row", [32, 10**12])
def test_a_row_that_is_not_there_is_refused(row: int, shards: Shards) -> None:
    with pytest.raises(ConfigError, match=f"the build read no row {row} of talks.jsonl") as caught:
        row_fate(shards, RowId("talks", "talks.jsonl", row))
    assert "the last one that was read is 31" in str(caught.value)


def test_a_row_that_may_not_be_there_is_not_promised(raw: Any) -> None:
    shards = build(raw.config("sources.talks.weight=0.5"), raw.recipes)
    last = int(shards.documents.row[shards.documents.source == shards.documents.sources.index("talks")].max())
    assert not row_fate(shards, RowId("talks", "talks.jsonl", last + 100)).is_known
    between = next(n for n in range(2, last) if row_fate(shards, RowId("talks", "talks.jsonl", n)).is_left_out)
    assert row_fate(shards, RowId("talks", "talks.jsonl", between)).is_known


@pytest.mark.parametrize("text", ["talks:7", "talks:talks.jsonl:7"])
def test_a_row_has_a_short_and_a_long_name(text: str, shards: Shards) -> None:
    assert parse_place(shards, text) == RowId("talks", "talks.jsonl", 7)


def test_the_end_of_a_path_names_a_file_if_no_other_ends_so(shards: Shards) -> None:
    names = ("a/rows.jsonl", "b/rows.jsonl", "b/more.jsonl")
    talks = replace(shards.manifest.sources["talks"], raw_files=tuple(RawFile(name, 0, "") for name in names))
    shards.manifest = replace(shards.manifest, sources={"talks": talks})
    assert parse_place(shards, "talks:more.jsonl:1").file == "b/more.jsonl"
    assert parse_place(shards, "talks:a/rows.jsonl:1").file == "a/rows.jsonl"
    for text in ("talks:rows.jsonl:1", "talks:1"):
        with pytest.raises(ConfigError, match="may be in"):
            parse_place(shards, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected SOURCE:FILE:ROW"),
        ("talks", "expected SOURCE:FILE:ROW"),
        ("talks:x", "expected SOURCE:FILE:ROW"),
        ("talks:-1", "expected SOURCE:FILE:ROW"),
        ("talks:talks.jsonl:²", "expected SOURCE:FILE:ROW"),
        ("nobody:3", "no source 'nobody'"),
        ("talks:others.jsonl:3", "no file 'others.jsonl' in talks; its files are talks.jsonl"),
    ],
)
def test_nonsense_is_refused_by_name(text: str, message: str, shards: Shards) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_place(shards, text)
    assert caught.value.hint


def test_the_raw_row_is_read_from_the_file_that_was_built_from(raw: Any, shards: Shards) -> None:
    assert raw_row(shards, RowId("talks", "talks.jsonl", 1), raw.sources_dir) == '{"turns": ["only a question"]}'
    with pytest.raises(ConfigError, match="has no row 99"):
        raw_row(shards, RowId("talks", "talks.jsonl", 99), raw.sources_dir)
    with pytest.raises(ConfigError, match="no such raw file"):
        raw_row(shards, RowId("talks", "talks.jsonl", 1), raw.sources_dir / "elsewhere")
