"""The document table: the origin and the counts of every document of a build, as an Arrow IPC file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
from numpy.typing import NDArray

DOCUMENTS = "documents.arrow"

Ints = NDArray[Any]


@dataclass(frozen=True)
class TurnStarts:
    """Where the system text and each turn's text start in every document, in tokens.

    Shapes: starts of all documents, concatenated; those of document n from ends[n] up to ends[n + 1].
    """

    starts: Ints
    ends: Ints

    def __getitem__(self, document: int) -> Ints:
        return self.starts[self.ends[document] : self.ends[document + 1]]

    def of(self, documents: Ints) -> list[Ints]:
        """The turn starts of some documents."""
        return [self[document] for document in documents.tolist()]


@dataclass(frozen=True)
class DocumentTable:
    """The document table: one entry per document, indexed by document id."""

    sources: tuple[str, ...]
    files: tuple[str, ...]
    source: Ints
    """Index into `sources`."""
    file: Ints
    """Index into `files`."""
    row: Ints
    """Number of the raw row in its file, from 0."""
    piece: Ints
    """Number of the piece of a conversation that was too long for one sequence, from 0."""
    first_turn: Ints
    """Number of the piece's first exchange in its conversation, from 0."""
    digest: Ints
    """64-bit hash of the conversation's turns."""
    group: Ints
    """64-bit hash of the conversation's first question; equal ones are in one split."""
    content: Ints
    """64-bit hash of the document's tokens and loss mask."""
    num_tokens: Ints
    num_supervised: Ints
    truncated: Ints
    """True if the document was cut at seq_len, without an end."""
    uses: Ints
    """How often the document is packed: more than once if its source has several epochs."""
    held_out: Ints
    """True if the document is in the valid split."""
    turn_starts: TurnStarts | None = None
    """Absent in builds of schema version 3."""

    def __len__(self) -> int:
        return len(self.source)


def write_documents(path: Path, table: DocumentTable) -> None:
    """Write the document table."""
    kinds = dict.fromkeys(("row", "piece", "first_turn", "num_tokens", "num_supervised"), pa.uint32())
    kinds |= dict.fromkeys(("digest", "group", "content"), pa.uint64())
    kinds |= dict.fromkeys(("truncated", "held_out"), pa.bool_()) | {"uses": pa.uint16()}
    columns = {"source": _names(table.source, table.sources), "file": _names(table.file, table.files)}
    columns |= {name: pa.array(getattr(table, name), kind) for name, kind in kinds.items()}
    if table.turn_starts is not None:
        ends, starts = pa.array(table.turn_starts.ends, pa.int32()), pa.array(table.turn_starts.starts, pa.uint16())
        columns["turn_starts"] = pa.ListArray.from_arrays(ends, starts)
    arrow = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, arrow.schema) as writer:
        writer.write_table(arrow, max_chunksize=len(table) or 1)


def read_documents(path: Path) -> DocumentTable:
    """Read the document table; its numbers are views of the memory-mapped file."""
    table = ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
    source, file = (table.column(name).combine_chunks() for name in ("source", "file"))
    numbers = {name: table.column(name).to_numpy() for name in table.column_names[2:] if name != "turn_starts"}
    return DocumentTable(
        tuple(source.dictionary.to_pylist()),
        tuple(file.dictionary.to_pylist()),
        source.indices.to_numpy(),
        file.indices.to_numpy(),
        **numbers,
        turn_starts=_turn_starts(table),
    )


def _turn_starts(table: Any) -> TurnStarts | None:
    if "turn_starts" not in table.column_names:
        return None
    lists = table.column("turn_starts").combine_chunks()
    return TurnStarts(lists.values.to_numpy(), lists.offsets.to_numpy())


def _names(indices: Ints, names: Sequence[str]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(names), pa.string()))
