"""The data-set card tells what is in a build and who may use it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sft.data.build.build import build
from sft.data.manifest import BuildManifest
from sft.data.report.dataset_card import data_card
from sft.data.shards import Shards


@pytest.fixture
def make(write_mixture: Callable[..., Any]) -> Callable[..., BuildManifest]:
    """Builds two sources and gives the manifest."""
    rows = [[f"question {n}", f"answer {n}"] for n in range(1209)]
    raw = write_mixture(alpha=rows[:1200], beta=[*rows[1200:], ["only a question"]])
    return lambda *arguments: build(raw.config(*arguments), raw.recipes).manifest


def table(card: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    part = card.split(f"## {heading}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]


def test_the_published_card_is_the_one_of_its_manifest(make: Callable[..., BuildManifest], tmp_path: Path) -> None:
    manifest = make()
    folder = tmp_path / "shards"
    assert (folder / "README.md").read_text(encoding="utf-8") == data_card(Shards.open(folder).manifest)
    assert manifest.name in data_card(manifest).splitlines()[0]


def test_the_card_s_numbers_are_the_manifest_s(make: Callable[..., BuildManifest]) -> None:
    manifest = make()
    card = data_card(manifest)
    heads, rules, alpha, beta = table(card, "Sources")
    assert rules == ["---", *["---:"] * (len(heads) - 1)]
    assert heads[:4] == ["source", "rows read", "kept", "dropped"]
    assert alpha[:4] == ["alpha", "1,200", "1,200", "0"]
    assert beta[:4] == ["beta", "10", "9", "1"]
    assert table(card, "What was dropped")[2:] == [["beta", "no_exchange", "1"]]
    (_, _, train, valid) = table(card, "Splits")
    assert train[2] == f"{manifest.splits['train'].documents:,}"
    assert int(train[2].replace(",", "")) + int(valid[2]) == 1209
    assert all(len(row) == len(heads) for row in (alpha, beta))


def test_a_build_that_dropped_nothing_says_so(make: Callable[..., BuildManifest]) -> None:
    assert "## What was dropped\n\nNothing.\n" in data_card(make("sources.beta.enabled=false"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "loss on assistant text and the token that ends it; each document ends with an end token."),
        (["supervise=all", "end_token=false"], "loss on every token but a document's first; no document ends with"),
    ],
)
def test_the_card_tells_what_is_learnt(arguments: list[str], words: str, make: Callable[..., BuildManifest]) -> None:
    assert words in data_card(make(*arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "- **Not for commercial use**: alpha, beta."),
        (["sources.alpha.commercial=true"], "- **Not for commercial use**: beta."),
        (["sources.alpha.commercial=true", "sources.beta.commercial=true"], "- **Commercial use is allowed**: every"),
    ],
)
def test_one_source_decides_for_all(arguments: list[str], words: str, make: Callable[..., BuildManifest]) -> None:
    card = data_card(make(*arguments))
    assert words in card
    assert "- Turns: Someone, Turns, 2023\n" in card


def test_each_license_is_listed_with_what_it_asks_for(make: Callable[..., BuildManifest]) -> None:
    manifest = make()
    changes = {"alpha": {"license": "CC-BY-SA-4.0", "commercial": True}, "beta": {"license": "none stated"}}
    known = manifest.sources
    sources = {name: replace(known[name], settings={**known[name].settings, **new}) for name, new in changes.items()}
    manifest = replace(manifest, sources=sources)
    heads, _, alpha, beta = table(data_card(manifest), "Licenses")
    assert heads == ["source", "license", "commercial use", "attribution", "share-alike", "note"]
    assert alpha == ["alpha", "CC-BY-SA-4.0", "yes", "yes", "yes", ""]
    assert beta[1:5] == ["none stated", "no", "unknown", "unknown"]
    assert "- **Conflicting conditions**: " in data_card(manifest)
