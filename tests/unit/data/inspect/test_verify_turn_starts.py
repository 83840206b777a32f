"""Turn starts are recorded and verified; older builds are read without it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.data.build.build import build
from sft.data.documents import DOCUMENTS, TurnStarts, write_documents
from sft.data.inspect.verify import verify
from sft.data.shards import KIND, SCHEMA_VERSION, Shards, is_content
from sft.errors import DataError
from sft.storage.manifest import write_manifest

TALKS = [[f"question {n}?", f"answer {n * 7}", "and?", "more."][: 2 + 2 * (n % 2)] for n in range(40)]


@pytest.fixture
def make(write_mixture: Callable[..., Any]) -> Callable[..., Path]:
    raw = write_mixture(talks=TALKS)
    return lambda *arguments: build(raw.config(*arguments), raw.recipes).folder


def rewrite_turn_starts(folder: Path, change: Callable[[TurnStarts], TurnStarts | None], version: int) -> None:
    """Write the document table with other turn starts, or none, and a manifest of which every hash is true."""
    shards = Shards.open(folder)
    table = shards.documents
    assert table.turn_starts is not None
    changed = replace(table, turn_starts=change(table.turn_starts))
    (folder / DOCUMENTS).unlink()
    write_documents(folder / DOCUMENTS, changed)
    facts = {name: value for name, value in shards.manifest.to_json().items() if name != "format"}
    write_manifest(folder, KIND, version, facts, is_content)


@pytest.mark.parametrize("place", [0, 1, 2, -1])
def test_a_turn_that_starts_elsewhere_is_refused(place: int, make: Callable[..., Path]) -> None:
    def moved(turns: TurnStarts) -> TurnStarts:
        starts = turns.starts.copy()
        starts[place] += 1
        return replace(turns, starts=starts)

    folder = make()
    rewrite_turn_starts(folder, moved, SCHEMA_VERSION)
    with pytest.raises(DataError, match=r"1 violations.*\n.*turns do not start at the recorded places"):
        verify(folder)


def test_a_turn_start_that_is_missing_is_refused(make: Callable[..., Path]) -> None:
    folder = make()
    rewrite_turn_starts(
        folder, lambda turns: TurnStarts(turns.starts[:-1], np.minimum(turns.ends, turns.ends[-1] - 1)), SCHEMA_VERSION
    )
    with pytest.raises(DataError, match="turns do not start at the recorded places"):
        verify(folder)


def test_a_table_without_turn_starts_is_refused_in_the_version_that_has_them(make: Callable[..., Path]) -> None:
    folder = make()
    rewrite_turn_starts(folder, lambda _: None, SCHEMA_VERSION)
    with pytest.raises(DataError, match="does not say where turns start"):
        verify(folder)


def test_shards_of_version_3_are_read_and_proven_and_look_the_same(make: Callable[..., Path]) -> None:
    folder = make()
    before, tokenizer = Shards.open(folder), Shards.open(folder).load_tokenizer()
    packs = {name: before.split(name) for name in before.manifest.splits}

    def starts(shards: Shards) -> list[list[int]]:
        return [
            shards.turn_starts(doc_id, pack.input_ids_T[place], tokenizer).tolist()
            for split in packs.values()
            for pack in (split[number] for number in range(len(split)))
            for doc_id, place in pack.documents()
        ]

    written = starts(before)
    rewrite_turn_starts(folder, lambda _: None, 3)
    after = Shards.open(folder)
    assert after.documents.turn_starts is None
    assert starts(after) == written
    assert "all as they must be" in verify(folder)


def test_shards_of_a_version_that_is_not_known_are_refused(make: Callable[..., Path]) -> None:
    folder = make()
    rewrite_turn_starts(folder, lambda turns: turns, 2)
    with pytest.raises(DataError, match="schema version 2, this program reads 3 or 4"):
        verify(folder)
