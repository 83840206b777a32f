"""A chunk of a build: successive rows of one raw file, and the file that holds their result.

A chunk's result depends only on its rows, its recipe, the settings and the tokenizer. So any process can make it, in
any order and on any machine; a build that was killed continues with the chunks that are missing.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Reason
from sft.data.dedup.minhash import NUM_BANDS
from sft.data.sources.files import RawRow
from sft.errors import StorageError

DOCUMENT_FIELDS = np.dtype(
    [
        ("row", np.uint32),
        ("piece", np.uint32),
        ("first_turn", np.uint32),
        ("digest", np.uint64),
        ("group", np.uint64),
        ("content", np.uint64),
        ("num_tokens", np.uint32),
        ("num_supervised", np.uint32),
        ("num_texts", np.uint16),
        ("truncated", np.bool_),
    ]
)
_DIGEST_CHARACTERS = 64


@dataclass(frozen=True)
class Chunk:
    """Successive rows of one file: the unit of work, the same for any number of workers."""

    source: str
    file: str
    rows: Sequence[tuple[int, RawRow]]
    name: str
    """File name of the chunk's result; equal only for equal rows, recipe and settings."""


@dataclass(frozen=True)
class Rejected:
    """A row, or a piece of one, that is not kept."""

    row: int
    piece: int | None
    reason: Reason
    detail: str
    excerpt: str


@dataclass(frozen=True)
class ChunkResult:
    """The documents of a chunk in row order, concatenated, and the rejected rows."""

    source: str
    file: str
    num_rows: int
    num_skipped: int
    """Conversations left out by the source's weight."""
    num_truncated: int
    checked_share: float
    """Share of the texts whose ids were made by the reference tokenizer or compared with it."""
    changed: dict[str, int]
    """Conversations that a stage changed, by stage."""
    rejected: list[Rejected]
    documents: NDArray[Any]
    """One record of DOCUMENT_FIELDS per document."""
    ids: NDArray[Any]
    loss_mask: NDArray[np.uint8]
    turn_starts: NDArray[np.uint16]
    """Where the texts of each document start in it: `num_texts` numbers per record."""
    bands: NDArray[np.uint64]
    """MinHash signatures to find near-duplicates, one row per conversation that has documents; or no rows."""


_ARRAYS = ("documents", "ids", "loss_mask", "turn_starts", "bands")


def write_chunk(path: Path, result: ChunkResult) -> None:
    """Write a result atomically: its hash, a line of JSON, the arrays, the rejected rows as lines of JSON.

    There is no fsync: a file that a power cut left incomplete does not match its hash and is made again.

    Raises: StorageError if it cannot be written.
    """
    arrays = {name: np.ascontiguousarray(getattr(result, name)) for name in _ARRAYS}
    header = {
        "source": result.source,
        "file": result.file,
        "num_rows": result.num_rows,
        "num_skipped": result.num_skipped,
        "num_truncated": result.num_truncated,
        "checked_share": result.checked_share,
        "changed": result.changed,
        "ids_type": arrays["ids"].dtype.name,
        "counts": {name: len(array) for name, array in arrays.items()},
        "num_bytes": {name: array.nbytes for name, array in arrays.items()},
    }
    line = json.dumps(header).encode() + b"\n"
    parts = [line, *(array.tobytes() for array in arrays.values())]
    parts += [json.dumps(asdict(item)).encode() + b"\n" for item in result.rejected]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    # Several hosts may make the same chunk at once, and two of them may use the same process id.
    staging = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.part")
    try:
        with staging.open("wb") as stream:
            stream.write(digest.hexdigest().encode() + b"\n")
            stream.writelines(parts)
        staging.replace(path)
    except OSError as error:
        raise StorageError(f"cannot be written: {error}", on=path, hint="check space and permissions") from error


@dataclass(frozen=True)
class ChunkFile:
    """A finished chunk on disk."""

    path: Path
    header: dict[str, Any]
    start: int
    """Offset of the arrays, in bytes."""

    @classmethod
    def open(cls, path: Path) -> "ChunkFile | None":
        """The chunk, or None if it is absent or damaged and must be made again."""
        if not path.is_file():
            return None
        data = path.read_bytes()
        content = memoryview(data)[_DIGEST_CHARACTERS + 1 :]
        if hashlib.sha256(content).hexdigest().encode() + b"\n" != data[: _DIGEST_CHARACTERS + 1]:
            return None
        end = data.index(b"\n", _DIGEST_CHARACTERS + 1) + 1
        return cls(path, json.loads(data[_DIGEST_CHARACTERS + 1 : end]), end)

    @property
    def source(self) -> str:
        return str(self.header["source"])

    @property
    def file(self) -> str:
        return str(self.header["file"])

    def rejected(self) -> Iterator[Rejected]:
        """The rows and pieces that are not kept."""
        with self.path.open("rb") as stream:
            stream.seek(self.start + sum(self.header["num_bytes"].values()))
            for line in stream:
                item = json.loads(line)
                yield Rejected(**{**item, "reason": Reason(item["reason"])})

    def documents(self) -> NDArray[Any]:
        """One record of DOCUMENT_FIELDS per document."""
        return self._array("documents", DOCUMENT_FIELDS)

    def ids(self) -> NDArray[Any]:
        """The ids of all documents, concatenated and memory-mapped."""
        return self._array("ids", np.dtype(self.header["ids_type"]))

    def loss_mask(self) -> NDArray[np.uint8]:
        """The loss masks of all documents, concatenated and memory-mapped."""
        return self._array("loss_mask", np.dtype(np.uint8))

    def turn_starts(self) -> NDArray[np.uint16]:
        """Where the texts of all documents start, counted from the document's first token, memory-mapped."""
        return self._array("turn_starts", np.dtype(np.uint16))

    def bands(self) -> NDArray[np.uint64]:
        """The signatures: one row per conversation, or none."""
        return self._array("bands", np.dtype((np.uint64, NUM_BANDS)))

    def _array(self, wanted: str, kind: np.dtype[Any]) -> NDArray[Any]:
        before = itertools.takewhile(lambda name: name != wanted, _ARRAYS)
        place = self.start + sum(self.header["num_bytes"][name] for name in before)
        count = self.header["counts"][wanted]
        # A plain array on the memory map: slicing a memmap object is several times slower.
        return np.asarray(np.memmap(self.path, kind, "r", place, (count,))) if count else np.zeros(0, kind)
