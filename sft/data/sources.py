"""Raw files → raw rows, streamed: .json, .jsonl and .parquet, plain or compressed as .gz or .zst.

The only file that imports `datasets`, which reads the parquet files.
"""

import gzip
import itertools
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import ijson
from backports import zstd

from sft.errors import DataError
from sft.storage.manifest import file_sha256

COMPRESSED = (".gz", ".zst")
LARGE_FILE_POINTER = b"version https://git-lfs.github.com/spec/"

RawRow = bytes | dict[str, Any]
"""A line of JSON still to be parsed, or a row that its format delivers parsed."""


@dataclass(frozen=True)
class SourceFile:
    """One raw file; `name` is its path below sources_dir and identifies it in lineage."""

    path: Path
    name: str
    num_bytes: int
    sha256: str


def find_files(sources_dir: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that match a recipe's patterns, compressed or not, sorted by name."""
    found = {
        path
        for pattern in patterns
        for suffix in ("", *COMPRESSED)
        for path in sources_dir.glob(pattern + suffix)
        if path.is_file() and not path.name.startswith(".")
    }
    return sorted(found)


def identify(path: Path, sources_dir: Path) -> SourceFile:
    """A raw file's name, size and hash.

    Raises: DataError if it is empty or only a large-file pointer.
    """
    with path.open("rb") as stream:
        start = stream.read(64)
    if not start:
        raise DataError("the file is empty", on=path, hint="download it again")
    if start.startswith(LARGE_FILE_POINTER):
        raise DataError(
            "is a Git LFS pointer, not the data itself", on=path, hint="fetch the real file: git lfs pull, or sft fetch"
        )
    return SourceFile(path, path.relative_to(sources_dir).as_posix(), path.stat().st_size, file_sha256(path))


def read_rows(path: Path) -> Iterator[tuple[int, RawRow]]:
    """The rows of a file with their numbers: the line in a .jsonl, the place in an array or a table, from 0.

    Raises: DataError if the file is cut short or not in its format.
    """
    row = -1
    try:
        for row, value in _rows(path):
            yield row, value
    except (EOFError, OSError, zlib.error, zstd.ZstdError, ijson.JSONError, ValueError) as error:
        place = "before the first row" if row < 0 else f"after row {row}"
        raise DataError(
            f"damaged or cut short {place}: {error}", on=path, hint="download it again and compare its size"
        ) from error


def _rows(path: Path) -> Iterator[tuple[int, RawRow]]:
    if path.name.removesuffix(".gz").removesuffix(".zst").endswith(".parquet"):
        yield from enumerate(_parquet_rows(path))
        return
    with _open(path) as stream:
        if _first_character(stream) == b"[":
            yield from enumerate(ijson.items(stream, "item", use_float=True))
        else:
            yield from ((number, line) for number, line in enumerate(stream) if line.strip())


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast(IO[bytes], zstd.open(path, "rb"))
    return path.open("rb")


def _first_character(stream: IO[bytes]) -> bytes:
    """The first byte that is not blank or a byte-order mark; the stream is set back to it."""
    for place in itertools.count():
        byte = stream.read(1)
        if byte not in (b" ", b"\t", b"\r", b"\n", b"\xef", b"\xbb", b"\xbf"):
            stream.seek(place)
            return byte
    raise AssertionError("unreachable: the end of a stream reads as b''")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix in COMPRESSED:
            plain = Path(folder) / "rows.parquet"
            with _open(path) as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
        else:
            plain = path
        try:
            yield from load_dataset("parquet", data_files=str(plain), split="train", streaming=True)
        except (DatasetsError, RuntimeError) as error:
            raise ValueError(str(error)) from error
