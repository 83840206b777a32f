"""The last stage of a build: select, pack, write shards, documents, quarantine, report, card and manifest."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.console.progress import progress
from sft.data.build.chunk import ChunkFile
from sft.data.build.corpus import Corpus
from sft.data.build.counts import SourceCounts
from sft.data.build.fingerprint import Inputs
from sft.data.build.packing import Bins, pack
from sft.data.build.selection import Selection, repeated_rows, select
from sft.data.documents import DOCUMENTS, DocumentTable, write_documents
from sft.data.manifest import BuildManifest, ShardFacts, SourceFacts, SourceInputs, SplitFacts
from sft.data.report.dataset_card import data_card
from sft.data.report.html import page
from sft.data.shards import (
    KIND,
    QUARANTINE,
    SCHEMA_VERSION,
    TOKENIZER,
    Packs,
    Shards,
    is_content,
    shard_name,
    write_shard,
)
from sft.errors import DataError
from sft.storage.manifest import write_manifest

REPORT = "report.html"


def publish_build(folder: Path, inputs: Inputs, counts: dict[str, SourceCounts], chunks: Sequence[ChunkFile]) -> None:
    """Write all files of a build into the staging folder, the manifest last."""
    corpus = Corpus(chunks, inputs.source_names, inputs.file_names)
    with progress("select", corpus.num_conversations, unit="conversations") as advance:
        selection = select(corpus, inputs.config, inputs.tokenizer)
        advance(corpus.num_conversations, "")
    if not selection.uses.any():
        raise DataError("no row is left to build from", hint="raise the sources' weights")
    repeated = _write_quarantine(folder / QUARANTINE, corpus, selection, inputs)
    _subtract_unused(counts, selection, repeated, inputs)
    # A document's id is its index among the packed documents.
    kept = selection.uses > 0
    doc_ids = np.cumsum(kept, dtype=np.uint32) - np.uint32(1)
    splits = {}
    for name, chosen in (("train", kept & ~selection.held_out), ("valid", kept & selection.held_out)):
        documents = np.repeat(np.flatnonzero(chosen), selection.uses[chosen])
        splits[name] = _write_split(folder, name, documents, doc_ids, corpus, inputs)
    write_documents(folder / DOCUMENTS, _table(inputs, corpus, selection, kept))
    (folder / TOKENIZER).write_text(inputs.tokenizer.json, encoding="utf-8")
    sources = {
        name: _source_facts(known, number, counts[name], corpus, selection)
        for number, (name, known) in enumerate(inputs.facts.sources.items())
    }
    manifest = BuildManifest(
        **{**vars(inputs.facts), "sources": sources},
        inputs_digest=inputs.digest,
        format=inputs.config.format,
        seq_len=inputs.config.seq_len,
        splits=splits,
    )
    (folder / "README.md").write_text(data_card(manifest), encoding="utf-8")
    (folder / REPORT).write_text(page(Shards(folder, manifest), inputs.tokenizer), encoding="utf-8")
    write_manifest(folder, KIND, SCHEMA_VERSION, manifest.to_json(), is_content)


def quarantined(chunks: Sequence[ChunkFile]) -> Iterator[dict[str, Any]]:
    """The quarantine record of every row and piece that the chunks rejected."""
    for chunk in chunks:
        for item in chunk.rejected():
            yield {
                "source": chunk.source,
                "file": chunk.file,
                "row": item.row,
                "piece": item.piece,
                "reason": item.reason.value,
                "detail": item.detail,
                "excerpt": item.excerpt,
                "twin": None,
            }


def write_lines(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """Write records as JSON lines."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_quarantine(path: Path, corpus: Corpus, selection: Selection, inputs: Inputs) -> Counter[tuple[str, str]]:
    """Write the quarantine of all dropped rows; returns the number of duplicates by source and reason."""
    counted: Counter[tuple[str, str]] = Counter()

    def repeated() -> Iterator[dict[str, Any]]:
        for record in repeated_rows(corpus, selection, inputs.tokenizer):
            counted[record["source"], record["reason"]] += 1
            yield record

    write_lines(path, itertools.chain(quarantined(corpus.chunks), repeated()))
    return counted


def _subtract_unused(
    counts: dict[str, SourceCounts], selection: Selection, repeated: Counter[tuple[str, str]], inputs: Inputs
) -> None:
    """Subtract the rows that selection left out from the counts of kept rows."""
    for (source, reason), number in repeated.items():
        counts[source].reasons[reason] += number
        counts[source].rows_kept -= number
    for source, unused in zip(inputs.source_names, selection.num_unused.tolist(), strict=True):
        counts[source].rows_kept -= unused
        counts[source].rows_skipped += unused


def _write_split(
    folder: Path,
    name: str,
    documents: NDArray[np.int64],
    doc_ids: NDArray[np.uint32],
    corpus: Corpus,
    inputs: Inputs,
) -> SplitFacts:
    """Pack and write the documents of one split; returns its manifest entry."""
    bins = pack(corpus.records["num_tokens"][documents], inputs.config.seq_len)
    per_shard = inputs.config.packs_per_shard
    count = -(-len(bins) // per_shard)
    shards: list[ShardFacts] = []
    with progress(f"write {name}", len(bins), unit="packs") as advance:
        for number in range(count):
            chosen = range(number * per_shard, min(len(bins), (number + 1) * per_shard))
            packs = _packs(bins, chosen, documents, doc_ids, corpus, inputs)
            file = shard_name(name, number, count)
            write_shard(folder / file, packs)
            supervised, tokens = int(packs.num_supervised_P.sum()), int(packs.doc_lengths.sum(dtype=np.int64))
            shards.append(ShardFacts(file, packs=len(chosen), tokens=tokens, supervised_tokens=supervised))
            advance(len(chosen), "")
    num_tokens = sum(shard.tokens for shard in shards)
    return SplitFacts(
        packs=len(bins),
        tokens=num_tokens,
        supervised_tokens=sum(shard.supervised_tokens for shard in shards),
        documents=len(documents),
        density=round(num_tokens / (len(bins) * inputs.config.seq_len), 6) if len(bins) else 0.0,
        shards=tuple(shards),
    )


def _packs(
    bins: Bins,
    chosen: range,
    documents: NDArray[np.int64],
    doc_ids: NDArray[np.uint32],
    corpus: Corpus,
    inputs: Inputs,
) -> Packs:
    """Concatenate the documents of each bin and pad the tails."""
    seq_len = inputs.config.seq_len
    ends = bins.ends[chosen.start : chosen.stop + 1]
    placed = documents[bins.documents[ends[0] : ends[-1]]]
    lengths = corpus.records["num_tokens"][placed].astype(np.int64)
    ends = ends - ends[0]
    ids_PT = np.full((len(chosen), seq_len), inputs.tokenizer.pad_id, inputs.id_type)
    mask_PT = np.zeros((len(chosen), seq_len), np.uint8)
    _copy(corpus, placed, _starts(lengths, ends, seq_len), ids_PT.reshape(-1), mask_PT.reshape(-1))
    return Packs(ids_PT, mask_PT, lengths, doc_ids[placed], ends, mask_PT.sum(axis=1, dtype=np.uint32))


def _starts(lengths: NDArray[np.int64], ends: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
    """Where each document starts, if bin n starts at n * seq_len."""
    before = np.cumsum(lengths) - lengths
    number = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    return np.asarray(before - before[ends[:-1]][number] + number * seq_len)


def _copy(
    corpus: Corpus, placed: NDArray[np.int64], starts: NDArray[np.int64], ids: NDArray[Any], mask: NDArray[np.uint8]
) -> None:
    """Copy the tokens of the documents to their starts, chunk by chunk, so that few files are open at a time."""
    order = np.argsort(placed, kind="stable")
    edges = np.searchsorted(placed[order], corpus.chunk_ends)
    for number in np.flatnonzero(np.diff(edges)).tolist():
        chunk = corpus.chunks[number]
        ends, chunk_ids, chunk_mask = corpus.token_ends(number), chunk.ids(), chunk.loss_mask()
        mine = order[edges[number] : edges[number + 1]]
        local = placed[mine] - corpus.chunk_ends[number]
        spans = zip(ends[local].tolist(), ends[local + 1].tolist(), starts[mine].tolist(), strict=True)
        for first, stop, start in spans:
            place = slice(start, start + stop - first)
            ids[place], mask[place] = chunk_ids[first:stop], chunk_mask[first:stop]


def _table(inputs: Inputs, corpus: Corpus, selection: Selection, kept: NDArray[np.bool_]) -> DocumentTable:
    columns = {name: corpus.records[name][kept] for name in corpus.records.dtype.names or () if name != "num_texts"}
    return DocumentTable(
        tuple(inputs.source_names),
        tuple(inputs.file_names),
        corpus.source[kept],
        corpus.file[kept],
        uses=selection.uses[kept],
        held_out=selection.held_out[kept],
        turn_starts=corpus.turn_starts(kept),
        **columns,
    )


def _source_facts(
    known: SourceInputs, number: int, counts: SourceCounts, corpus: Corpus, selection: Selection
) -> SourceFacts:
    mine = (corpus.source == number) & (selection.uses > 0)
    uses = selection.uses[mine].astype(np.int64)
    return SourceFacts(
        **vars(known),
        rows_read=counts.rows_read,
        rows_skipped=counts.rows_skipped,
        rows_kept=counts.rows_kept,
        rows_dropped=counts.rows_dropped,
        reasons=dict(sorted(counts.reasons.items())),
        changed=dict(sorted(counts.changed.items())),
        split=counts.split,
        truncated=counts.truncated,
        documents=int(mine.sum()),
        distinct_conversations=len(np.unique(corpus.records["digest"][mine])),
        held_out_documents=int((mine & selection.held_out).sum()),
        tokens=int((corpus.records["num_tokens"][mine] * uses).sum()),
        supervised_tokens=int((corpus.records["num_supervised"][mine] * uses).sum()),
    )
