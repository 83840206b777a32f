"""Manifests of builds that were made by hand."""

from collections.abc import Sequence
from typing import Any

from sft.data.manifest import BuildManifest, ShardFacts, SourceFacts, SplitFacts, TokenizerFacts
from sft.data.shards import Pack


def split_facts(file: str, packs: Sequence[Pack]) -> SplitFacts:
    """What a manifest records of a split that lies in one file."""
    num_tokens = sum(pack.num_tokens for pack in packs)
    num_supervised = sum(pack.num_supervised for pack in packs)
    num_places = sum(len(pack.input_ids_T) for pack in packs)
    return SplitFacts(
        packs=len(packs),
        tokens=num_tokens,
        supervised_tokens=num_supervised,
        documents=sum(len(pack.doc_ids_N) for pack in packs),
        density=round(num_tokens / num_places, 6) if packs else 0.0,
        shards=(ShardFacts(file, packs=len(packs), tokens=num_tokens, supervised_tokens=num_supervised),),
    )


NO_LIMITS = {
    "title": "Talks",
    "license": "CC0-1.0",
    "citation": "Someone, Talks, 2023",
    "commercial": True,
    "weight": 1.0,
    "num_conversations": None,
    "max_rows": None,
}
"""The settings of a source that readers of a manifest rely on."""


def source_facts(**settings: Any) -> SourceFacts:
    """A source with these settings, of which no row was read."""
    return SourceFacts(
        settings={**NO_LIMITS, **settings},
        recipe={},
        raw_files=(),
        rows_read=0,
        rows_skipped=0,
        rows_kept=0,
        rows_dropped=0,
        reasons={},
        changed={},
        split=0,
        truncated=0,
        documents=0,
        distinct_conversations=0,
        held_out_documents=0,
        tokens=0,
        supervised_tokens=0,
    )


def build_manifest(**facts: Any) -> BuildManifest:
    """The manifest of an empty build, but for these facts."""
    nothing: dict[str, Any] = {
        "version": "0",
        "made_with": {},
        "name": "hand-made",
        "settings": {"supervise": "assistant", "end_token": True},
        "evaluation_files": (),
        "tokenizer": TokenizerFacts("0" * 64, 0),
        "sources": {},
        "inputs_digest": "",
        "format": "stablelm",
        "seq_len": 1,
        "splits": {},
    }
    return BuildManifest(**{**nothing, **facts})
