"""Verify that a published build satisfies its whole contract."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.encode import Layout
from sft.chat.supervision import DocumentBatch, structure_violations
from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import Turns
from sft.console.progress import progress
from sft.data.digests import content_digests
from sft.data.manifest import SourceFacts, SplitFacts, TokenizerFacts
from sft.data.shards import SCHEMA_VERSION, Pack, Shards, Split
from sft.errors import DataError, listed
from sft.storage.manifest import damaged_files, refuse_damaged

MAX_SHOWN = 10
PACKS_PER_BATCH = 64


def verify(folder: Path) -> str:
    """Check hashes, counts and the supervision contract of every document; returns a sentence with the result.

    Raises: DataError listing the first violations.
    """
    shards = Shards.open(folder)
    refuse_damaged(folder, damaged_files(folder, shards.manifest.files))
    tokenizer = shards.load_tokenizer()
    table = shards.documents
    uses = np.zeros(len(table), np.int64)
    violations = list(_manifest_problems(shards, tokenizer))
    for name, facts in shards.manifest.splits.items():
        split = shards.split(name)
        violations += _total_problems(name, split, facts, shards.seq_len)
        with progress(f"verify {name}", len(split), unit="packs") as advance:
            for start in range(0, len(split), PACKS_PER_BATCH):
                packs = [split[index] for index in range(start, min(len(split), start + PACKS_PER_BATCH))]
                violations += _problems(packs, start, name, shards, tokenizer)
                documents = np.concatenate([pack.doc_ids_N for pack in packs])
                np.add.at(uses, documents[documents < len(table)], 1)
                advance(len(packs), "")
    if wrong := int((uses != table.uses).sum()):
        violations.append(f"{wrong} documents are not packed as often as the document table says")
    if violations:
        what = f"{len(violations)} violations of the contract{listed(violations, MAX_SHOWN)}"
        raise DataError(what, on=folder, hint="build again")
    tokens = int(table.num_tokens.sum())
    return f"{len(shards.manifest.files)} files, {len(table):,} documents, {tokens:,} tokens: all as they must be"


def _manifest_problems(shards: Shards, tokenizer: ChatTokenizer) -> Iterator[str]:
    """Differences between the manifest's counts and the document table, the quarantine and the tokenizer."""
    table, manifest = shards.documents, shards.manifest
    if manifest.tokenizer != TokenizerFacts(tokenizer.sha256, tokenizer.num_ids):
        yield "tokenizer.json is not the tokenizer of the manifest"
    if manifest.schema_version == SCHEMA_VERSION and table.turn_starts is None:
        yield "the document table does not say where turns start"
    reasons = Counter((item["source"], item["reason"]) for item in shards.quarantine())
    if set(table.sources) != set(manifest.sources):
        yield f"the document table names {', '.join(table.sources)}, the manifest {', '.join(manifest.sources)}"
    for number, name in ((number, name) for number, name in enumerate(table.sources) if name in manifest.sources):
        facts, mine = manifest.sources[name], table.source == number
        uses = table.uses[mine].astype(np.int64)
        found = {
            "documents": int(mine.sum()),
            "tokens": int((table.num_tokens[mine] * uses).sum()),
            "supervised_tokens": int((table.num_supervised[mine] * uses).sum()),
            "held_out_documents": int((mine & table.held_out).sum()),
            "rows_read": facts.rows_kept + facts.rows_dropped + facts.rows_skipped,
            "reasons": {reason: count for (source, reason), count in sorted(reasons.items()) if source == name},
        }
        yield from _differences(name, facts, found)
    for what, column in (("conversations", table.digest), ("first questions", table.group)):
        if both := int(np.isin(column[table.held_out], column[~table.held_out]).sum()):
            yield f"{both} held-out documents have {what} that are in training as well"


def _total_problems(name: str, split: Split, facts: SplitFacts, seq_len: int) -> Iterator[str]:
    packs = (split[index] for index in range(len(split)))
    sizes: NDArray[np.int64] = np.array([(pack.num_tokens, len(pack.doc_ids_N)) for pack in packs]).reshape(-1, 2)
    tokens, documents = map(int, sizes.sum(axis=0))
    found = {
        "tokens": tokens,
        "supervised_tokens": int(split.num_supervised_P.sum()),
        "documents": documents,
        "density": round(tokens / (len(sizes) * seq_len), 6) if len(sizes) else 0.0,
    }
    yield from _differences(name, facts, found)


def _differences(name: str, facts: SourceFacts | SplitFacts, found: dict[str, Any]) -> Iterator[str]:
    for key, value in found.items():
        if (recorded := getattr(facts, key)) != value:
            yield f"{name}: {key} is {recorded} in the manifest, found {value}"


def _problems(packs: list[Pack], first: int, split: str, shards: Shards, tokenizer: ChatTokenizer) -> Iterator[str]:
    """The problems of some packs, of which the first has the number `first`."""
    readable: list[Pack] = []
    names: list[str] = []
    for number, pack in enumerate(packs, first):
        unreadable = _unreadable(pack, shards, tokenizer)
        problems = [unreadable] if unreadable else _pack_problems(pack, tokenizer)
        yield from (f"{split} pack {number}: {text}" for text in problems)
        if unreadable is None:
            readable.append(pack)
            names += [f"{split} pack {number}: document {doc_id}" for doc_id in pack.doc_ids_N.tolist()]
    if readable:
        yield from (
            f"{names[number]}: {text}" for number, text in _document_problems(readable, split, shards, tokenizer)
        )


def _unreadable(pack: Pack, shards: Shards, tokenizer: ChatTokenizer) -> str | None:
    """Why the documents of a pack cannot be checked, or None."""
    end = pack.num_tokens
    if (
        len(pack.input_ids_T) != shards.seq_len
        or end > shards.seq_len
        or len(pack.doc_ids_N) != len(pack.doc_lengths_N)
        or not pack.doc_lengths_N.all()
    ):
        return f"{end} of {len(pack.input_ids_T)} tokens, expected at most {shards.seq_len}"
    if pack.input_ids_T.max() >= tokenizer.num_ids or (pack.doc_ids_N >= len(shards.documents)).any():
        return "a token or document that does not exist"
    return None


def _pack_problems(pack: Pack, tokenizer: ChatTokenizer) -> Iterator[str]:
    end = pack.num_tokens
    if pack.loss_mask_T[end:].any() or (pack.input_ids_T[end:] != tokenizer.pad_id).any():
        yield "the tail is not unsupervised padding"
    if pack.num_supervised != int(pack.loss_mask_T.sum()):
        yield "num_supervised is not the sum of the loss mask"


def _document_problems(
    packs: list[Pack], split: str, shards: Shards, tokenizer: ChatTokenizer
) -> Iterator[tuple[int, str]]:
    """The problems of the documents of these packs, with their index among all of these documents."""
    table, settings = shards.documents, shards.manifest.settings
    ids: NDArray[Any] = np.concatenate([pack.doc_ids_N for pack in packs])
    lengths: NDArray[np.int64] = np.concatenate([pack.doc_lengths_N for pack in packs]).astype(np.int64)
    batch = DocumentBatch(
        np.concatenate([pack.input_ids_T[: pack.num_tokens] for pack in packs]),
        np.concatenate([pack.loss_mask_T[: pack.num_tokens] for pack in packs]),
        np.cumsum(lengths),
        table.truncated[ids],
        None if table.turn_starts is None else Turns.of(table.turn_starts.of(ids), np.cumsum(lengths)),
    )
    counts = batch.count(batch.loss_mask_T)
    for number in np.flatnonzero((lengths != table.num_tokens[ids]) | (counts != table.num_supervised[ids])).tolist():
        yield number, f"its counts differ from {lengths[number]} and {counts[number]} in the document table"
    for number in np.flatnonzero(table.held_out[ids] != (split == "valid")).tolist():
        yield number, "in the wrong split"
    layout = Layout(shards.seq_len, supervise=settings["supervise"], end_token=settings["end_token"])
    broken = dict(structure_violations(batch, tokenizer, layout))
    yield from ((number, f"{drop.reason}, {drop.detail}") for number, drop in broken.items())
    content = content_digests(batch.ids_T, batch.loss_mask_T, batch.ends_N)
    for number in np.flatnonzero(content != table.content[ids]).tolist():
        if number not in broken:
            yield number, "its tokens or loss mask are not those of the document table"
