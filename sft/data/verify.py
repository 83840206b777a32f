"""Proof, after the fact, that a published build keeps its whole contract."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sft.chat.conversation import Drop
from sft.chat.proof import structure_violation
from sft.chat.template import Layout
from sft.chat.tokenizer import ChatTokenizer
from sft.data.shards import DocumentTable, Pack, Shards, Split
from sft.errors import DataError
from sft.progress import progress

MAX_SHOWN = 10


def verify(folder: Path) -> str:
    """Check hashes, counts and the supervision contract of every document; a sentence with what was proven.

    Raises: DataError listing the first violations.
    """
    shards = Shards.open(folder)
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    table = shards.documents
    uses = np.zeros(len(table), np.int64)
    violations = list(_manifest_problems(shards, tokenizer))
    for name, facts in shards.manifest["splits"].items():
        split = shards.split(name)
        violations += _total_problems(name, split, facts, shards.seq_len)
        with progress(f"verify {name}", len(split), unit="packs") as advance:
            for index in range(len(split)):
                pack = split[index]
                problems = list(_pack_problems(pack, name, shards, tokenizer))
                violations += [f"{name} pack {index}: {text}" for text in problems]
                np.add.at(uses, pack.doc_ids_D[pack.doc_ids_D < len(table)], 1)
                advance(1, "")
    if wrong := int((uses != 1).sum()):
        violations.append(f"{wrong} documents are not in exactly one pack")
    if violations:
        shown = "\n".join(f"  - {text}" for text in violations[:MAX_SHOWN])
        raise DataError(f"{len(violations)} violations of the contract\n{shown}", on=folder, hint="build again")
    tokens = int(table.num_tokens.sum())
    return f"{len(shards.manifest['files'])} files, {len(table):,} documents, {tokens:,} tokens: all as they must be"


def _manifest_problems(shards: Shards, tokenizer: ChatTokenizer) -> Iterator[str]:
    """Where the manifest's counts are not those of the document table, the quarantine and the tokenizer."""
    table, manifest = shards.documents, shards.manifest
    if manifest["tokenizer"] != {"sha256": tokenizer.sha256, "num_ids": tokenizer.num_ids}:
        yield "tokenizer.json is not the tokenizer of the manifest"
    reasons = Counter((item["source"], item["reason"]) for item in shards.quarantine())
    for number, name in enumerate(table.sources):
        facts, mine = manifest["sources"][name], table.source == number
        found = {
            "documents": int(mine.sum()),
            "tokens": int(table.num_tokens[mine].sum()),
            "supervised_tokens": int(table.num_supervised[mine].sum()),
            "held_out_documents": int((mine & table.held_out).sum()),
            "rows_read": facts["rows_kept"] + facts["rows_dropped"] + facts["rows_skipped"],
            "reasons": {reason: count for (source, reason), count in sorted(reasons.items()) if source == name},
        }
        yield from _differences(name, facts, found)
    in_training = table.digest[~table.held_out]
    if both := int(np.isin(table.digest[table.held_out], in_training).sum()):
        yield f"{both} held-out documents are in training as well"


def _total_problems(name: str, split: Split, facts: dict[str, Any], seq_len: int) -> Iterator[str]:
    packs = [split[index] for index in range(len(split))]
    tokens = sum(pack.num_tokens for pack in packs)
    found = {
        "tokens": tokens,
        "supervised_tokens": int(split.num_supervised_N.sum()),
        "documents": sum(len(pack.doc_ids_D) for pack in packs),
        "density": round(tokens / (len(packs) * seq_len), 6) if packs else 0.0,
    }
    yield from _differences(name, facts, found)


def _differences(name: str, facts: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for key, value in found.items():
        if facts.get(key) != value:
            yield f"{name}: {key} is {facts.get(key)} in the manifest, found {value}"


def _pack_problems(pack: Pack, split: str, shards: Shards, tokenizer: ChatTokenizer) -> Iterator[str]:
    table, end = shards.documents, pack.num_tokens
    if (
        len(pack.input_ids_T) != shards.seq_len
        or end > shards.seq_len
        or len(pack.doc_ids_D) != len(pack.doc_lengths_D)
    ):
        yield f"{end} of {len(pack.input_ids_T)} tokens, expected at most {shards.seq_len}"
        return
    if pack.input_ids_T.max() >= tokenizer.num_ids or (pack.doc_ids_D >= len(table)).any():
        yield "a token or document that does not exist"
        return
    if pack.loss_mask_T[end:].any() or (pack.input_ids_T[end:] != tokenizer.pad_id).any():
        yield "the tail is not unsupervised padding"
    if pack.num_supervised != int(pack.loss_mask_T.sum()):
        yield "num_supervised is not the sum of the loss mask"
    for doc_id, place in pack.documents():
        ids, mask = pack.input_ids_T[place], pack.loss_mask_T[place]
        if (len(ids), int(mask.sum())) != (table.num_tokens[doc_id], table.num_supervised[doc_id]):
            yield f"document {doc_id}: its counts differ from {len(ids)} and {int(mask.sum())} in the document table"
        if bool(table.held_out[doc_id]) != (split == "valid"):
            yield f"document {doc_id}: in the wrong split"
        violation = _violation(ids, mask, _layout(shards, table, doc_id), tokenizer)
        if violation is not None:
            yield f"document {doc_id}: {violation.reason}, {violation.detail}"


def _layout(shards: Shards, table: DocumentTable, doc_id: int) -> Layout:
    settings = shards.manifest["settings"]
    source = shards.manifest["sources"][table.sources[table.source[doc_id]]]
    return Layout(shards.seq_len, source["too_long"], settings["supervise"], settings["end_token"])


def _violation(ids: np.ndarray, mask: np.ndarray, layout: Layout, tokenizer: ChatTokenizer) -> Drop | None:
    # A full document without its end is one that its recipe truncated, if it does such things.
    is_cut = layout.end_token and len(ids) == layout.seq_len and ids[-1] != tokenizer.end_id
    return structure_violation(ids, mask, tokenizer, layout, truncated=is_cut and layout.too_long == "truncate")
