"""Encoded documents on their way from the workers to the packer: on disk, so that memory stays bounded."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.data.worker import DOCUMENT_FIELDS, ChunkResult


@dataclass(frozen=True)
class Spooled:
    """All documents of a build in row order, with random access to their tokens."""

    ids: NDArray[Any]
    loss_mask: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    """Where each document starts in `ids`; one entry more than documents."""
    records: NDArray[Any]
    """One record of DOCUMENT_FIELDS per document."""
    source: NDArray[np.int32]
    file: NDArray[np.int32]

    paths: tuple[Path, Path]

    def delete(self) -> None:
        """Remove the spooled files from the folder that is about to be published."""
        for path in self.paths:
            path.unlink()


class Spool:
    """Collects chunk results in order."""

    def __init__(self, folder: Path, id_type: Any, sources: list[str], files: list[str]) -> None:
        self._id_type, self._sources, self._files = np.dtype(id_type), sources, files
        self._paths = folder / "ids.bin", folder / "mask.bin"
        self._streams = [path.open("wb") for path in self._paths]
        self._records: list[NDArray[Any]] = []
        self._source: list[NDArray[np.int32]] = []
        self._file: list[NDArray[np.int32]] = []

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.close()

    def add(self, result: ChunkResult) -> None:
        """Append a chunk's documents."""
        self._streams[0].write(result.ids.tobytes())
        self._streams[1].write(result.loss_mask.tobytes())
        count = len(result.documents)
        self._records.append(result.documents)
        self._source.append(np.full(count, self._sources.index(result.source), np.int32))
        self._file.append(np.full(count, self._files.index(result.file), np.int32))

    def read(self) -> Spooled:
        """Everything added so far, memory-mapped."""
        for stream in self._streams:
            stream.flush()
        records = np.concatenate([np.zeros(0, DOCUMENT_FIELDS), *self._records])
        return Spooled(
            _mapped(self._paths[0], self._id_type),
            _mapped(self._paths[1], np.dtype(np.uint8)),
            np.concatenate([[0], np.cumsum(records["num_tokens"], dtype=np.int64)]),
            records,
            np.concatenate([np.zeros(0, np.int32), *self._source]),
            np.concatenate([np.zeros(0, np.int32), *self._file]),
            self._paths,
        )


def _mapped(path: Path, kind: Any) -> NDArray[Any]:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)
