"""Packed sequences on disk: Arrow IPC files, uncompressed and memory-mapped.

T = tokens of one pack (seq_len), P = packs of one call, N = documents of one pack.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from sft.chat.formats.base import ChatFormat
from sft.chat.formats.registry import format_named
from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import read_turn_starts
from sft.data.documents import DOCUMENTS, DocumentTable, read_documents
from sft.data.manifest import BuildManifest, SplitFacts
from sft.errors import ConfigError, DataError
from sft.storage.json_file import readable
from sft.storage.manifest import MANIFEST, LateHashes, damaged_files, read_manifest, refuse_damaged

KIND = "shards"
SCHEMA_VERSION = 4
READABLE_VERSIONS = (3, SCHEMA_VERSION)
"""Version 3 has no turn starts in its document table."""
QUARANTINE = "quarantine.jsonl"
TOKENIZER = "tokenizer.json"
PACKS_PER_RECORD_BATCH = 256

Ints = NDArray[Any]


@dataclass(frozen=True)
class Pack:
    """One packed sequence.

    Shapes: input_ids_T, loss_mask_T; doc_lengths_N and doc_ids_N; the tail after the documents is padding.
    """

    input_ids_T: Ints
    loss_mask_T: Ints
    doc_lengths_N: Ints
    doc_ids_N: Ints
    num_supervised: int

    @property
    def num_tokens(self) -> int:
        return int(self.doc_lengths_N.sum())

    def documents(self) -> Iterator[tuple[int, slice]]:
        """Each document's id and place in the pack."""
        end = 0
        for doc_id, length in zip(self.doc_ids_N, self.doc_lengths_N, strict=True):
            yield int(doc_id), slice(end, end := end + int(length))


@dataclass(frozen=True)
class Packs:
    """Packed sequences of one shard.

    Shapes: input_ids_PT, loss_mask_PT, num_supervised_P; doc_lengths and doc_ids of all packs, concatenated; those of
    pack n from ends[n] up to ends[n + 1].
    """

    input_ids_PT: Ints
    loss_mask_PT: Ints
    doc_lengths: Ints
    doc_ids: Ints
    ends: Ints
    num_supervised_P: Ints


def is_content(name: str) -> bool:
    """Whether a file of a build is training data: packs, document table or tokenizer, but not the report or card."""
    return name.endswith(".arrow") or name == TOKENIZER


def shard_name(split: str, number: int, count: int) -> str:
    """The file name of one shard."""
    return f"{split}-{number:05d}-of-{count:05d}.arrow"


def token_type(num_ids: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest integer type that holds every token id."""
    return np.uint16 if num_ids <= 1 << 16 else np.uint32


def write_shard(path: Path, packs: Packs) -> None:
    """Write packs as one shard file."""
    schema = _pack_schema(packs.input_ids_PT)
    # The writer's own alignment padding is zeroed, so equal packs give equal bytes.
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, schema) as writer:
        for start in range(0, len(packs.input_ids_PT), PACKS_PER_RECORD_BATCH):
            writer.write_batch(_record_batch(packs, slice(start, start + PACKS_PER_RECORD_BATCH), schema))


@dataclass(frozen=True)
class _Columns:
    """The columns of one record batch, as views of the memory-mapped file.

    Shapes: input_ids_PT, loss_mask_PT, num_supervised_P; documents of pack n from ends[n] up to ends[n + 1].
    """

    input_ids_PT: Ints
    loss_mask_PT: Ints
    doc_lengths: Ints
    doc_ids: Ints
    length_ends: Ints
    id_ends: Ints
    num_supervised_P: Ints

    @classmethod
    def of(cls, batch: Any) -> "_Columns":
        ids, mask, lengths, doc_ids, supervised = batch.columns
        return cls(
            input_ids_PT=ids.flatten().to_numpy().reshape(batch.num_rows, -1),
            loss_mask_PT=mask.flatten().to_numpy().reshape(batch.num_rows, -1),
            doc_lengths=lengths.values.to_numpy(),
            doc_ids=doc_ids.values.to_numpy(),
            length_ends=lengths.offsets.to_numpy(),
            id_ends=doc_ids.offsets.to_numpy(),
            num_supervised_P=supervised.to_numpy(),
        )

    def pack(self, row: int) -> Pack:
        return Pack(
            self.input_ids_PT[row],
            self.loss_mask_PT[row],
            self.doc_lengths[self.length_ends[row] : self.length_ends[row + 1]],
            self.doc_ids[self.id_ends[row] : self.id_ends[row + 1]],
            int(self.num_supervised_P[row]),
        )


class Split:
    """Random access to the packs of one split in the memory-mapped files."""

    def __init__(self, folder: Path, name: str, facts: SplitFacts, hashes: LateHashes | None = None) -> None:
        self.name, self._hashes = name, hashes or LateHashes(folder)
        self._batches = [(shard.file, batch) for shard in facts.shards for batch in _open(folder / shard.file)]
        self._starts = np.cumsum([0, *(batch.num_rows for _, batch in self._batches)])
        self._views: dict[int, _Columns] = {}
        if len(self) != facts.packs:
            raise DataError(f"{name} holds {len(self)} packs, the manifest says {facts.packs}", on=folder)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Pack:
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[number])
        return self._view(number).pack(row)

    @cached_property
    def num_supervised_P(self) -> Ints:
        """Supervised tokens of every pack."""
        return np.concatenate([np.zeros(0, np.uint32), *(view.num_supervised_P for view in self._all_views())])

    @cached_property
    def placed(self) -> tuple[Ints, Ints, Ints]:
        """Ids and lengths of the documents of all packs, concatenated, and the number of documents of each pack."""
        views = self._all_views()
        columns = zip(*((view.doc_ids, view.doc_lengths, np.diff(view.id_ends)) for view in views), strict=True)
        ids, lengths, counts = map(_joined, columns) if views else [_joined(())] * 3
        return ids, lengths, counts

    def _all_views(self) -> list[_Columns]:
        self._hashes.check(file for file, _ in self._batches)
        return [self._view(number) for number in range(len(self._batches))]

    def _view(self, number: int) -> _Columns:
        if number not in self._views:
            file, batch = self._batches[number]
            self._hashes.check([file])
            self._views[number] = _Columns.of(batch)
        return self._views[number]


class Shards:
    """A published build: its manifest, splits and documents."""

    def __init__(self, folder: Path, manifest: BuildManifest, hashes: LateHashes | None = None) -> None:
        self.folder, self.manifest, self._hashes = folder, manifest, hashes or LateHashes(folder)

    @classmethod
    def open(cls, folder: Path, *, check_hashes: bool = True) -> "Shards":
        """Open a build and check that its content has not changed since it was published.

        Without `check_hashes` each shard file, which is large, is hashed only before it is first read.

        Raises: DataError if a file of the content is missing, truncated or changed.
        """
        content = read_manifest(folder, KIND, *READABLE_VERSIONS)
        with readable(folder / MANIFEST, what="not the manifest of a build"):
            manifest = BuildManifest.from_json(content)
        files = {shard.file for split in manifest.splits.values() for shard in split.shards}
        recorded = manifest.files
        late = {file: recorded[file] for file in (QUARANTINE, *(() if check_hashes else files)) if file in recorded}
        refuse_damaged(folder, damaged_files(folder, recorded, unhashed=late, is_content=is_content))
        return cls(folder, manifest, LateHashes(folder, late))

    def split(self, name: str) -> Split:
        splits = self.manifest.splits
        if name not in splits:
            raise ConfigError(f"no split {name!r}; it has {', '.join(splits)}", on=self.folder)
        return Split(self.folder, name, splits[name], self._hashes)

    @property
    def seq_len(self) -> int:
        return self.manifest.seq_len

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def chat_format(self) -> ChatFormat:
        """The chat format of the conversations."""
        return format_named(self.manifest.format)

    def load_tokenizer(self) -> ChatTokenizer:
        """The tokenizer that the build was made with, with its format's control ids."""
        return ChatTokenizer.load(self.tokenizer_path, self.chat_format)

    @cached_property
    def documents(self) -> DocumentTable:
        return read_documents(self.folder / DOCUMENTS)

    def turn_starts(self, doc_id: int, ids_T: Ints, tokenizer: ChatTokenizer) -> Ints:
        """Where the texts of the document with these ids start; in an older build they are read from the ids."""
        stored = self.documents.turn_starts
        return read_turn_starts(ids_T, tokenizer) if stored is None else stored[doc_id]

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """Every row that was not kept, with its reason.

        Raises: DataError if the file was changed.
        """
        self._hashes.check([QUARANTINE])
        with (self.folder / QUARANTINE).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _pack_schema(input_ids_PT: Ints) -> Any:
    ids, length = pa.from_numpy_dtype(input_ids_PT.dtype), input_ids_PT.shape[1]
    types = {
        "input_ids": pa.list_(ids, length),
        "loss_mask": pa.list_(pa.uint8(), length),
        "doc_lengths": pa.list_(pa.uint16()),
        "doc_ids": pa.list_(pa.uint32()),
        "num_supervised": pa.uint32(),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def _record_batch(packs: Packs, chosen: slice, schema: Any) -> Any:
    ends, length = packs.ends[chosen.start : chosen.stop + 1], packs.input_ids_PT.shape[1]
    documents = slice(ends[0], ends[-1])
    ends = (ends - ends[0]).astype(np.int32)
    columns = [
        pa.FixedSizeListArray.from_arrays(packs.input_ids_PT[chosen].reshape(-1), length),
        pa.FixedSizeListArray.from_arrays(packs.loss_mask_PT[chosen].reshape(-1), length),
        pa.ListArray.from_arrays(ends, pa.array(packs.doc_lengths[documents], pa.uint16())),
        pa.ListArray.from_arrays(ends, pa.array(packs.doc_ids[documents], pa.uint32())),
        pa.array(packs.num_supervised_P[chosen], pa.uint32()),
    ]
    return pa.record_batch(
        [column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _open(path: Path) -> Iterator[Any]:
    try:
        reader = ipc.open_file(pa.memory_map(str(path)))
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"not readable as an Arrow file: {error}", on=path, hint="restore it or build again") from error


def _joined(arrays: Iterable[Ints]) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *arrays])
