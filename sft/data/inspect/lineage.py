"""Trace a token to its raw row, and a raw row to its packs or to the reason why it is in none.

N = documents to find, U = uses of documents: their places in packs, repeats included.
"""

import bisect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.roles import role_of
from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import marker_starts
from sft.data.build.corpus import RowId
from sft.data.manifest import RawFile
from sft.data.shards import Pack, Shards
from sft.data.sources.files import MAX_ROW_BYTES, read_rows
from sft.errors import ConfigError, DataError
from sft.hashing import file_sha256

WINDOW_TOKENS = 12
"""Tokens shown on each side of a traced one."""


@dataclass(frozen=True)
class Span:
    """The place of a document in a pack."""

    doc_id: int
    split: str
    pack: int
    start: int
    """Its first token in the pack."""
    stop: int


@dataclass(frozen=True)
class TokenOrigin:
    """The origin of a token of a pack."""

    doc_id: int
    token_id: int
    role: str
    """Role of its turn: system, user or assistant; the end token is the assistant's."""
    exchange: int | None
    """Number of the turn's exchange in the conversation, from 0; none for the system text."""
    is_control: bool
    has_loss: bool
    before: bytes
    spelling: bytes
    after: bytes


@dataclass(frozen=True)
class RowFate:
    """The documents of a raw row, or the records of its drop."""

    place: RowId
    doc_ids: list[int]
    spans: list[Span]
    """One for every time one of the documents is packed."""
    dropped: list[dict[str, Any]]
    """The quarantine records of the row or of its pieces."""
    is_known: bool
    """False if the row may not exist: the build records neither this row nor a later one of the file."""

    @property
    def is_left_out(self) -> bool:
        """Whether its source's weight or number of conversations left it out, provided that the row exists."""
        return not self.doc_ids and not self.dropped


def token_origin(shards: Shards, tokenizer: ChatTokenizer, pack: Pack, token: int) -> TokenOrigin:
    """The origin of a token of a pack.

    Raises: ConfigError if the token is padding or outside the pack.
    """
    holding = [(doc_id, place) for doc_id, place in pack.documents() if place.start <= token < place.stop]
    if not holding:
        last = pack.num_tokens - 1
        raise ConfigError(f"token {token} is padding or outside", hint=f"the pack's documents are tokens 0 to {last}")
    [(doc_id, place)] = holding
    ids, here = pack.input_ids_T[place], token - place.start
    begins = marker_starts(shards.turn_starts(doc_id, ids, tokenizer), tokenizer)
    text = max(0, bisect.bisect_right(begins, here) - 1)
    return TokenOrigin(
        doc_id=doc_id,
        token_id=int(ids[here]),
        role=role_of(text),
        exchange=int(shards.documents.first_turn[doc_id]) + (text - 1) // 2 if text else None,
        is_control=bool(tokenizer.is_control[ids[here]]),
        has_loss=bool(pack.loss_mask_T[token]),
        before=tokenizer.spell(ids[max(0, here - WINDOW_TOKENS) : here]),
        spelling=tokenizer.spell(ids[here : here + 1]),
        after=tokenizer.spell(ids[here + 1 : here + 1 + WINDOW_TOKENS]),
    )


def spans(shards: Shards, doc_ids_N: NDArray[Any]) -> list[Span]:
    """Every place of these documents, in the order of splits and packs."""
    found: list[Span] = []
    if not len(doc_ids_N):
        return found
    for name in shards.manifest.splits:
        ids_U, lengths_U, counts_N = shards.split(name).placed
        stops_U, firsts_N = np.cumsum(lengths_U), np.cumsum(counts_N) - counts_N
        chosen = np.flatnonzero(np.isin(ids_U, doc_ids_N))
        packs = np.searchsorted(firsts_N, chosen, side="right") - 1
        # A pack's first token, counted like stops_U; every pack holds a document.
        origins = stops_U[firsts_N[packs]] - lengths_U[firsts_N[packs]]
        stops = stops_U[chosen] - origins
        columns = (ids_U[chosen], packs, stops - lengths_U[chosen], stops)
        found += [Span(i, name, n, a, b) for i, n, a, b in zip(*(c.tolist() for c in columns), strict=True)]
    return found


def place_of(shards: Shards, doc_id: int) -> RowId:
    """The raw row of a document."""
    table = shards.documents
    return RowId(table.sources[table.source[doc_id]], table.files[table.file[doc_id]], int(table.row[doc_id]))


def parse_place(shards: Shards, text: str) -> RowId:
    """Parse SOURCE:FILE:ROW or SOURCE:ROW; the start of the file's path may be omitted.

    Raises: ConfigError if the build has no such source or file, or several.
    """
    source, _, rest = text.partition(":")
    file, _, row = rest.rpartition(":")
    if not (row.isascii() and row.isdigit()):
        raise ConfigError(f"row {text!r}: expected SOURCE:FILE:ROW", hint="such as alpaca:alpaca_data.json:17")
    known = shards.manifest.sources
    if source not in known:
        raise ConfigError(f"no source {source!r}", on=shards.folder, hint=f"its sources are {', '.join(known)}")
    names = [file.name for file in known[source].raw_files]
    matches = [name for name in names if name == file] or [name for name in names if f"/{name}".endswith(f"/{file}")]
    if not file:
        matches = names
    if len(matches) != 1:
        what = f"no file {file!r} in {source}" if not matches else f"{text!r} may be in {len(matches)} files"
        raise ConfigError(f"{what}; its files are {', '.join(names)}", on=shards.folder, hint="name one of them")
    return RowId(source, matches[0], int(row))


def row_fate(shards: Shards, place: RowId) -> RowFate:
    """The documents of a raw row, or the records of its drop.

    Raises: ConfigError if the build read no such row.
    """
    table, facts = shards.documents, shards.manifest.sources[place.source]
    of_file = _is(table.source, table.sources, place.source) & _is(table.file, table.files, place.file)
    records = [item for item in shards.quarantine() if (item["source"], item["file"]) == (place.source, place.file)]
    last = max([-1, *table.row[of_file][-1:].tolist(), *(item["row"] for item in records)])
    doc_ids = np.flatnonzero(of_file & (table.row == place.row))
    dropped = [item for item in records if item["row"] == place.row]
    fate = RowFate(place, doc_ids.tolist(), spans(shards, doc_ids), dropped, last >= place.row)
    if fate.is_left_out and not facts.rows_skipped:
        max_rows = facts.settings["max_rows"]
        limit = f" (max_rows={max_rows})" if max_rows else ""
        raise ConfigError(
            f"{place.source}: the build read no row {place.row} of {place.file}",
            on=shards.folder,
            hint=f"rows are counted from 0, blank lines as well; the last one that was read is {last}{limit}",
        )
    return fate


def raw_file(shards: Shards, place: RowId) -> RawFile:
    """The manifest entry of a row's raw file."""
    return next(file for file in shards.manifest.sources[place.source].raw_files if file.name == place.file)


def raw_row(shards: Shards, place: RowId, sources_dir: Path) -> str:
    """The raw row itself as text.

    Raises: ConfigError if the file or the row does not exist, DataError if the file has changed since the build.
    """
    path, wanted = sources_dir / place.file, raw_file(shards, place).sha256
    if not path.is_file():
        raise ConfigError("no such raw file", on=path, hint="--sources is the folder that was sources_dir")
    found = file_sha256(path)
    if found != wanted:
        raise DataError(
            f"is not the file that was built from: its sha256 is {found[:12]}…, expected {wanted[:12]}…",
            on=path,
            hint="find the file as it was when the shards were built",
        )
    for number, row in read_rows(path, shards.manifest.settings.get("max_row_bytes", MAX_ROW_BYTES)):
        if number == place.row:
            return _text(row)
    raise ConfigError(f"has no row {place.row}", on=path, hint="rows are counted from 0")


def rows_of_packs(shards: Shards, split: str, packs: list[int]) -> Iterator[Span]:
    """The documents of some packs in their order."""
    chosen = shards.split(split)
    for number in packs:
        for doc_id, place in chosen[number].documents():
            yield Span(doc_id, split, number, place.start, place.stop)


def _is(indices: NDArray[Any], names: tuple[str, ...], name: str) -> NDArray[np.bool_]:
    return np.asarray(indices == (names.index(name) if name in names else -1))


def _text(row: bytes | dict[str, Any]) -> str:
    if isinstance(row, bytes):
        return row.decode("utf-8", "replace").rstrip("\r\n")
    return json.dumps(row, ensure_ascii=False, default=str)
