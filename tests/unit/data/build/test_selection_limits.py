"""What a limit leaves out of one source is not lost for the others, and the limit is met exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sft.data.build.build import build
from sft.data.inspect.verify import verify
from sft.data.shards import Shards
from sft.errors import DataError

Rows = list[list[str]]


def built(raw: Any, *arguments: str) -> Shards:
    shards = build(raw.config("seq_len=128", *arguments), raw.recipes)
    verify(shards.folder)
    return shards


def numbered(name: str, count: int) -> Rows:
    return [[f"{name} {n}?", f"answer {n * n}."] for n in range(count)]


def trained(shards: Shards, source: str) -> int:
    """How many of a source's conversations are trained on."""
    table = shards.documents
    mine = (table.source == table.sources.index(source)) & ~table.held_out & (table.uses > 0)
    return len(set(table.row[mine].tolist()))


def distinct(shards: Shards) -> int:
    table = shards.documents
    return len(np.unique(table.digest[table.uses > 0]))


@pytest.mark.parametrize("held_out", ["valid_share=0", "valid_share=0.2", "valid_conversations=3"])
@pytest.mark.parametrize("limited", ["alpha", "beta"])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_a_limit_loses_no_conversation_that_another_source_has(
    count: int, limited: str, held_out: str, write_mixture: Callable[..., Any]
) -> None:
    rows = numbered("same", 40)
    raw = write_mixture(
        alpha=[*rows, *numbered("more", 20 if limited == "beta" else 0)], beta=[*rows, *numbered("b", 30)]
    )
    shards = built(raw, f"sources.{limited}.num_conversations={count}", held_out)
    assert trained(shards, limited) == count
    digests = shards.documents.digest[shards.documents.uses > 0]
    assert len(digests) == len(set(digests.tolist()))
    other = 40 + (30 if limited == "alpha" else 20)
    only_limited = trained(shards, limited) if limited == "beta" else 0
    held = shards.documents.held_out & (shards.documents.source == shards.documents.sources.index("beta"))
    only_held = int(held.sum()) if limited == "beta" else 0
    assert distinct(shards) == other + only_limited + only_held


def test_the_same_rows_under_another_limit(write_mixture: Callable[..., Any]) -> None:
    rows = numbered("same", 40)
    raw = write_mixture(alpha=rows, beta=[rows[-1], *rows[:-1]])
    shards = built(raw, "sources.alpha.num_conversations=5")
    assert (trained(shards, "alpha"), distinct(shards)) == (5, 40)


@pytest.mark.parametrize("held_out", ["valid_share=0.2", "valid_share=0.01", "valid_conversations=6"])
def test_a_limit_is_met_exactly_where_sources_open_alike(held_out: str, write_mixture: Callable[..., Any]) -> None:
    """First questions are shared, and what is held out in one source is not trained on in another."""
    same = numbered("same", 30)
    alike = [[question, "another answer"] for question, _ in same]
    raw = write_mixture(alpha=[*same, *alike], beta=[*alike[5:], *same[10:], *numbered("b", 8)])
    for seed in range(6):
        out = f"out={raw.recipes}-{seed}"
        shards = built(raw, "sources.alpha.num_conversations=15", held_out, f"seed={seed}", out)
        table = shards.documents
        assert not set(table.group[table.held_out].tolist()) & set(table.group[~table.held_out].tolist())
        assert trained(shards, "alpha") == 15


@pytest.mark.parametrize(
    "setting", ["valid_conversations=6", "sources.beta.num_conversations=20"], ids=["held out", "trained on"]
)
def test_what_a_limit_leaves_out_counts_for_the_other_source(setting: str, write_mixture: Callable[..., Any]) -> None:
    rows = numbered("same", 40)
    raw = write_mixture(alpha=rows, beta=[*rows[::-1], *numbered("b", 4)])
    shards = built(raw, "sources.alpha.num_conversations=5", setting)
    assert trained(shards, "alpha") == 5
    assert trained(shards, "beta") >= 20


@pytest.mark.parametrize("near", [(), ("sources.beta.near_duplicates=0.8",)])
def test_a_source_of_nothing_but_repetitions_is_refused(
    near: tuple[str, ...], write_mixture: Callable[..., Any]
) -> None:
    rows = numbered("same", 10)
    raw = write_mixture(alpha=rows, beta=[rows[-1], *rows[:-1]])
    with pytest.raises(DataError, match="source beta: every conversation repeats one of another source") as caught:
        built(raw, *near)
    assert "sources.beta.enabled=false" in str(caught.value)
    assert distinct(built(raw, "sources.beta.duplicates=keep")) == 10


def test_near_repetitions_of_what_a_limit_leaves_out_are_built(write_mixture: Callable[..., Any]) -> None:
    words = [" ".join(f"w{n}x{k}" for k in range(30)) for n in range(20)]
    first = [[f"q{n}?", text] for n, text in enumerate(words)]
    again = [[f"q{n}?", f"{text} end"] for n, text in enumerate(words)]
    raw = write_mixture(alpha=first, beta=again)
    shards = built(
        raw, "sources.alpha.num_conversations=5", "sources.beta.near_duplicates=0.8", "valid_share=0", "seq_len=512"
    )
    assert trained(shards, "alpha") == 5
    assert trained(shards, "beta") == 15
