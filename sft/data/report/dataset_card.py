"""The data-set card (README.md) of a build."""

from collections.abc import Iterator
from typing import Any

from sft.chat.formats.registry import format_named
from sft.data.report.licenses import SourceLicence, consequences, source_licences

DROPPED_HEADS = ("source", "reason", "rows or pieces")
LICENCE_HEADS = ("source", "licence", "commercial use", "attribution", "share-alike", "note")
SPLIT_HEADS = ("split", "packs", "documents", "tokens", "supervised", "density")
SOURCE_HEADS = ("source", "rows read", "kept", "dropped", "not chosen", "documents", "held out", "tokens", "supervised")
NUMBERS = {*SPLIT_HEADS[1:], *SOURCE_HEADS[1:], *DROPPED_HEADS[2:]}
"""Columns that stand flush right."""
WORDS = {True: "yes", False: "no", None: "unknown"}


def data_card(facts: dict[str, Any]) -> str:
    """The card as Markdown: what is in the build, what was left out and why, and who may use it."""
    return "\n".join(_lines(facts)) + "\n"


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    sources, settings = facts["sources"], facts["settings"]
    yield from (f"# {facts['name']}", "")
    yield (
        f"Conversations from {len(sources)} sources as token sequences of {facts['seq_len']}, packed, "
        f"with a loss mask. Made by sft {facts['version']}; `manifest.json` holds every count and hash, and "
        "`report.html` shows lengths, dropped rows and some packs."
    )
    yield from ("", "## Splits", "", *_table(SPLIT_HEADS, map(_split_row, facts["splits"].items())))
    yield from ("", "## Sources", "", *_table(SOURCE_HEADS, map(_source_row, sources.items())))
    yield from ("", "## What was dropped", "", *_dropped(sources), "")
    yield "`quarantine.jsonl` names every one of these rows with its reason."
    sketch = format_named(facts.get("format")).sketch
    yield from ("", "## Text", "", f"`{sketch}`, nothing between tags and text;")
    ends = "each" if settings["end_token"] else "no"
    yield f"loss on {_supervision(settings)}; {ends} document ends with an end token."
    licences = source_licences(sources)
    yield from ("", "## Licences", "", *_table(LICENCE_HEADS, map(_licence_row, licences)), "")
    yield from (f"- **{item.title}**: {item.text}" for item in consequences(licences))
    yield from ("", "## Citations", "")
    yield from dict.fromkeys(f"- {source['title']}: {source['citation']}" for source in sources.values())


def _table(heads: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---:' if head in NUMBERS else '---' for head in heads)} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _split_row(item: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    name, split = item
    counts = (f"{split[key]:,}" for key in ("packs", "documents", "tokens", "supervised_tokens"))
    return (name, *counts, f"{split['density']:.3%}")


def _source_row(item: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    name, source = item
    keys = (
        "rows_read",
        "rows_kept",
        "rows_dropped",
        "rows_skipped",
        "documents",
        "held_out_documents",
        "tokens",
        "supervised_tokens",
    )
    return (name, *(f"{source[key]:,}" for key in keys))


def _licence_row(item: SourceLicence) -> tuple[str, ...]:
    asked = [item.terms.attribution, item.terms.share_alike] if item.terms else [None, None]
    return item.source, item.licence, *(WORDS[value] for value in (item.commercial, *asked)), item.note


def _dropped(sources: dict[str, dict[str, Any]]) -> Iterator[str]:
    rows = [
        (name, reason, f"{count:,}") for name, source in sources.items() for reason, count in source["reasons"].items()
    ]
    yield from _table(DROPPED_HEADS, rows) if rows else ["Nothing."]


def _supervision(settings: dict[str, Any]) -> str:
    whole = settings["supervise"] == "all"
    return "every token but a document's first" if whole else "assistant text and the token that ends it"
