"""Compare two builds, A and B: settings, and row by row what was gained, lost, changed or moved.

Rows are compared by the columns of the document table: the digest of their turns and the counts of their tokens.
N = rows that a build packs, R = rows of one kind.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.data.documents import DocumentTable
from sft.data.manifest import BuildManifest, SourceFacts
from sft.data.shards import Shards
from sft.storage.json_file import flat, unequal

Rows = NDArray[np.int64]
LEFT_OUT, NOT_READ = "left_out", "not_read"
"""Why a row is missing without a quarantine record: left out by weight or number of conversations, or not read."""
_SETTINGS = ("version", "made_with", "tokenizer", "evaluation_files", "settings")


@dataclass(frozen=True)
class Conversations:
    """The rows that a build packs, sorted by key.

    Shapes: counts_N5 holds tokens, tokens with loss, pieces, and the sums of their first exchanges and content hashes.
    """

    key_N: NDArray[np.uint64]
    """Source, file and row in one number, the same for both builds."""
    digest_N: NDArray[np.uint64]
    counts_N5: NDArray[np.int64]
    held_out_N: NDArray[np.bool_]
    uses_N: NDArray[np.int64]
    first_document_N: Rows
    ends: Rows
    """Source s has the rows from ends[s] up to ends[s + 1]."""


@dataclass(frozen=True)
class SourceDiff:
    """How the rows of one source differ; rows are numbered as in the build's Conversations.

    Invariant: every row of A is in same, text, tokens or lost; every row of B in same, text, tokens or gained.
    """

    num_a: int
    num_b: int
    num_same: int
    text: tuple[Rows, Rows]
    """Rows of A and of B, in pairs, whose turns differ."""
    tokens: tuple[Rows, Rows]
    """Pairs with the same turns whose tokens, loss or pieces differ in number."""
    moved: tuple[Rows, Rows]
    """Pairs in different splits; each is also counted as same, text or tokens."""
    num_to_valid: int
    num_repacked: int
    """Number of pairs that one build packs more often than the other."""
    lost: Rows
    gained: Rows
    num_shared_digests: int
    """Distinct conversations, by their turns, that are in both builds, in any row."""
    num_digests: tuple[int, int]
    lost_reasons: dict[str, int]
    gained_reasons: dict[str, int]


@dataclass(frozen=True)
class Diff:
    """Two builds and their differences."""

    a: Shards
    b: Shards
    rows_a: Conversations
    rows_b: Conversations
    is_same_build: bool
    settings: list[tuple[str, Any, Any]]
    """Name of the setting or input, its value in A, its value in B."""
    sources: dict[str, SourceDiff]
    records_a: dict[int, dict[str, Any]]
    """Quarantine records of A for the rows that only B holds, by key; records_b the other way round."""
    records_b: dict[int, dict[str, Any]]


def diff(a: Shards, b: Shards) -> Diff:
    """Compare two builds.

    Raises: DataError if one was changed after it was published.
    """
    sources = list(dict.fromkeys([*a.manifest.sources, *b.manifest.sources]))
    files = sorted({*a.documents.files, *b.documents.files})
    rows_a, rows_b = (_conversations(shards.documents, sources, files) for shards in (a, b))
    lost = rows_a.key_N[~np.isin(rows_a.key_N, rows_b.key_N)]
    gained = rows_b.key_N[~np.isin(rows_b.key_N, rows_a.key_N)]
    records_b, records_a = _records(b, lost, sources, files), _records(a, gained, sources, files)
    found = {
        name: _source_diff(rows_a, rows_b, number, (_missing(b, name), records_b), (_missing(a, name), records_a))
        for number, name in enumerate(sources)
    }
    is_same = a.manifest.content_digest == b.manifest.content_digest
    changes = list(_changes(a.manifest, b.manifest))
    return Diff(
        a=a,
        b=b,
        rows_a=rows_a,
        rows_b=rows_b,
        is_same_build=is_same,
        settings=changes,
        sources=found,
        records_a=records_a,
        records_b=records_b,
    )


def summary(result: Diff) -> dict[str, Any]:
    """The result as JSON values, without examples."""
    sides = ("a", result.a), ("b", result.b)
    return {
        "a": _facts(result.a),
        "b": _facts(result.b),
        "same_build": result.is_same_build,
        "settings": [{"name": name, "a": one, "b": other} for name, one, other in result.settings],
        "sources": {
            name: {
                "rows": {
                    "a": item.num_a,
                    "b": item.num_b,
                    "same": item.num_same,
                    "text_changed": len(item.text[0]),
                    "tokens_changed": len(item.tokens[0]),
                    "lost": len(item.lost),
                    "gained": len(item.gained),
                    "train_to_valid": item.num_to_valid,
                    "valid_to_train": len(item.moved[0]) - item.num_to_valid,
                    "repacked": item.num_repacked,
                },
                "conversations": dict(zip(("a", "b"), item.num_digests, strict=True))
                | {"in_both": item.num_shared_digests},
                "lost_reasons": item.lost_reasons,
                "gained_reasons": item.gained_reasons,
                "counts": {
                    key: {side: getattr(shards.manifest.sources.get(name), key, None) for side, shards in sides}
                    for key in ("rows_read", "rows_skipped", "tokens", "supervised_tokens", "reasons")
                },
            }
            for name, item in result.sources.items()
        },
    }


def _facts(shards: Shards) -> dict[str, Any]:
    manifest = shards.manifest
    splits = {name: split.to_json() for name, split in manifest.splits.items()}
    return {"name": manifest.name, "content_digest": manifest.content_digest, "splits": splits}


def _conversations(table: DocumentTable, sources: Sequence[str], files: Sequence[str]) -> Conversations:
    source = np.array([sources.index(name) for name in table.sources], np.uint64)[table.source]
    file = np.array([files.index(name) for name in table.files], np.uint64)[table.file]
    key = _key(source, file, table.row.astype(np.uint64), len(files))
    # The documents of a row are adjacent.
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.zeros(0, np.int64)
    order = np.argsort(key[first], kind="stable")
    columns = (table.num_tokens, table.num_supervised, np.ones(len(key), np.int64), table.first_turn, table.content)
    counts = [np.add.reduceat(column.astype(np.int64), first) if len(first) else first for column in columns]
    first = first[order]
    return Conversations(
        key_N=key[first],
        digest_N=table.digest[first],
        counts_N5=np.stack(counts, axis=1)[order],
        held_out_N=table.held_out[first],
        uses_N=table.uses[first].astype(np.int64),
        first_document_N=first,
        ends=np.searchsorted(key[first], np.arange(len(sources) + 1, dtype=np.uint64) * np.uint64(len(files) << 32)),
    )


def _key(source: NDArray[np.uint64], file: NDArray[np.uint64], row: NDArray[np.uint64], num_files: int) -> Any:
    """Row keys in the order of sources, files and rows."""
    return (source * np.uint64(num_files) + file) << np.uint64(32) | row


def _records(
    shards: Shards, wanted: NDArray[np.uint64], sources: list[str], files: list[str]
) -> dict[int, dict[str, Any]]:
    """The quarantine record of each of these rows; the first one if there are several."""
    source_numbers = {name: number for number, name in enumerate(sources)}
    file_numbers = {name: number for number, name in enumerate(files)}
    keys = set(wanted.tolist())
    found: dict[int, dict[str, Any]] = {}
    for record in shards.quarantine():
        file = file_numbers.get(record["file"])
        if file is not None:
            key = (source_numbers[record["source"]] * len(files) + file) << 32 | record["row"]
            if key in keys:
                found.setdefault(key, record)
    return found


def _missing(shards: Shards, source: str) -> str:
    """Why rows of a source may be neither packed nor in the quarantine."""
    facts = shards.manifest.sources.get(source)
    return LEFT_OUT if facts is not None and facts.rows_skipped else NOT_READ


def _source_diff(
    a: Conversations,
    b: Conversations,
    number: int,
    in_b: tuple[str, dict[int, dict[str, Any]]],
    in_a: tuple[str, dict[int, dict[str, Any]]],
) -> SourceDiff:
    mine_a, mine_b = (slice(*side.ends[number : number + 2].tolist()) for side in (a, b))
    _, at_a, at_b = np.intersect1d(a.key_N[mine_a], b.key_N[mine_b], assume_unique=True, return_indices=True)
    both_a, both_b = at_a + mine_a.start, at_b + mine_b.start
    text = a.digest_N[both_a] != b.digest_N[both_b]
    tokens = ~text & (a.counts_N5[both_a] != b.counts_N5[both_b]).any(axis=1)
    moved = a.held_out_N[both_a] != b.held_out_N[both_b]
    lost, gained = _without(mine_a, both_a), _without(mine_b, both_b)
    digests_a, digests_b = np.unique(a.digest_N[mine_a]), np.unique(b.digest_N[mine_b])
    return SourceDiff(
        num_a=mine_a.stop - mine_a.start,
        num_b=mine_b.stop - mine_b.start,
        num_same=int((~text & ~tokens).sum()),
        text=(both_a[text], both_b[text]),
        tokens=(both_a[tokens], both_b[tokens]),
        moved=(both_a[moved], both_b[moved]),
        num_to_valid=int(b.held_out_N[both_b[moved]].sum()),
        num_repacked=int((a.uses_N[both_a] != b.uses_N[both_b]).sum()),
        lost=lost,
        gained=gained,
        num_shared_digests=len(np.intersect1d(digests_a, digests_b, assume_unique=True)),
        num_digests=(len(digests_a), len(digests_b)),
        lost_reasons=_reasons(a.key_N[lost], *in_b),
        gained_reasons=_reasons(b.key_N[gained], *in_a),
    )


def _without(mine: slice, both: Rows) -> Rows:
    return np.setdiff1d(np.arange(mine.start, mine.stop), both, assume_unique=True)


def _reasons(keys: NDArray[np.uint64], otherwise: str, records: dict[int, dict[str, Any]]) -> dict[str, int]:
    reasons = Counter(records[key]["reason"] if key in records else otherwise for key in keys.tolist())
    return dict(reasons.most_common())


def _changes(a: BuildManifest, b: BuildManifest) -> Iterator[tuple[str, Any, Any]]:
    """Settings and inputs that differ; equal differences of several sources are reported once."""
    plain_a, plain_b = (
        dict(flat({part: values[part] for part in _SETTINGS}, ".")) for values in (a.to_json(), b.to_json())
    )
    yield from ((name.removeprefix("settings."), *both) for name, *both in unequal(plain_a, plain_b))
    sources_a, sources_b = a.sources, b.sources
    for name in [*sources_a, *sources_b]:
        if (name in sources_a) != (name in sources_b):
            one, other = ("present" if name in side else "absent" for side in (sources_a, sources_b))
            yield f"sources.{name}", one, other
    grouped: dict[str, tuple[list[str], str, list[Any]]] = {}
    for source in (name for name in sources_a if name in sources_b):
        mine_a, mine_b = (dict(_source_settings(side[source])) for side in (sources_a, sources_b))
        for name, *values in unequal(mine_a, mine_b):
            grouped.setdefault(repr((name, values)), ([], name, values))[0].append(source)
    for names, name, (one, other) in grouped.values():
        yield f"sources.{','.join(names)}.{name}", one, other


def _source_settings(facts: SourceFacts) -> Iterator[tuple[str, Any]]:
    yield from flat({**facts.settings, "recipe": facts.recipe}, ".")
    yield "raw_files", [f"{file.name} {file.sha256[:12]}" for file in facts.raw_files]
