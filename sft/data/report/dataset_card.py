"""The data-set card (README.md) of a build."""

from collections.abc import Iterator, Mapping
from typing import Any

from sft.chat.formats.registry import format_named
from sft.data.manifest import BuildManifest, SourceFacts, SplitFacts
from sft.data.report.licenses import SourceLicense, consequences, source_licenses

DROPPED_HEADS = ("source", "reason", "rows or pieces")
LICENSE_HEADS = ("source", "license", "commercial use", "attribution", "share-alike", "note")
SPLIT_HEADS = ("split", "packs", "documents", "tokens", "supervised", "density")
SOURCE_HEADS = ("source", "rows read", "kept", "dropped", "not chosen", "documents", "held out", "tokens", "supervised")
NUMBERS = {*SPLIT_HEADS[1:], *SOURCE_HEADS[1:], *DROPPED_HEADS[2:]}
"""Columns that are right-aligned."""
WORDS = {True: "yes", False: "no", None: "unknown"}


def data_card(manifest: BuildManifest) -> str:
    """The card as Markdown: what is in the build, what was dropped and why, and the licenses."""
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: BuildManifest) -> Iterator[str]:
    sources, settings = manifest.sources, manifest.settings
    yield from (f"# {manifest.name}", "")
    yield (
        f"Conversations from {len(sources)} sources, packed into sequences of {manifest.seq_len} tokens "
        f"with a loss mask. Made by sft {manifest.version}; `manifest.json` holds every count and hash, and "
        "`report.html` shows lengths, dropped rows and some packs."
    )
    yield from ("", "## Splits", "", *_table(SPLIT_HEADS, map(_split_row, manifest.splits.items())))
    yield from ("", "## Sources", "", *_table(SOURCE_HEADS, map(_source_row, sources.items())))
    yield from ("", "## What was dropped", "", *_dropped(sources), "")
    yield "`quarantine.jsonl` lists each of these rows with its reason."
    sketch = format_named(manifest.format).sketch
    yield from ("", "## Text", "", f"`{sketch}`, nothing between tags and text;")
    ends = "each" if settings["end_token"] else "no"
    yield f"loss on {_supervision(settings)}; {ends} document ends with an end token."
    licenses = source_licenses(sources)
    yield from ("", "## Licenses", "", *_table(LICENSE_HEADS, map(_license_row, licenses)), "")
    yield from (f"- **{item.title}**: {item.text}" for item in consequences(licenses))
    yield from ("", "## Citations", "")
    all_settings = (source.settings for source in sources.values())
    yield from dict.fromkeys(f"- {mine['title']}: {mine['citation']}" for mine in all_settings)


def _table(heads: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---:' if head in NUMBERS else '---' for head in heads)} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _split_row(item: tuple[str, SplitFacts]) -> tuple[str, ...]:
    name, split = item
    counts = (split.packs, split.documents, split.tokens, split.supervised_tokens)
    return (name, *(f"{count:,}" for count in counts), f"{split.density:.3%}")


def _source_row(item: tuple[str, SourceFacts]) -> tuple[str, ...]:
    name, source = item
    rows = (source.rows_read, source.rows_kept, source.rows_dropped, source.rows_skipped)
    counts = (*rows, source.documents, source.held_out_documents, source.tokens, source.supervised_tokens)
    return (name, *(f"{count:,}" for count in counts))


def _license_row(item: SourceLicense) -> tuple[str, ...]:
    asked = [item.terms.attribution, item.terms.share_alike] if item.terms else [None, None]
    return item.source, item.license, *(WORDS[value] for value in (item.commercial, *asked)), item.note


def _dropped(sources: Mapping[str, SourceFacts]) -> Iterator[str]:
    rows = [
        (name, reason, f"{count:,}") for name, source in sources.items() for reason, count in source.reasons.items()
    ]
    yield from _table(DROPPED_HEADS, rows) if rows else ["Nothing."]


def _supervision(settings: Mapping[str, Any]) -> str:
    whole = settings["supervise"] == "all"
    return "every token but a document's first" if whole else "assistant text and the token that ends it"
