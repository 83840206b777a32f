"""Raw files → raw rows, streamed: .json, .jsonl and .parquet, plain or compressed as .gz or .zst."""

import gzip
import re
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from sft.data.sources.json_array import array_items
from sft.data.sources.parquet import parquet_rows
from sft.errors import DataError, StorageError
from sft.hashing import file_sha256

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_ROW_BYTES = 4_000_000
"""More than any conversation needs; the tokenizer takes more than a hundred bytes of memory per byte of text."""
CHARACTERS_PER_BYTE = 4
"""Characters in the file per byte of an array's row: escapes, blanks and field names add to its own size."""
COMPRESSED = (".gz", ".zst")
LARGE_FILE_POINTER = b"version https://git-lfs.github.com/spec/"

RawRow = bytes | dict[str, Any]
"""An unparsed line of JSON, or a row that the reader of its format has already parsed."""


@dataclass(frozen=True)
class SourceFile:
    """One raw file; `name` is its path below sources_dir and identifies it in lineage."""

    path: Path
    name: str
    num_bytes: int
    sha256: str
    modified_ns: int


def find_files(sources_dir: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that match a recipe's patterns, compressed or not, sorted by name.

    Raises: DataError if a file is there twice, plain and compressed, which would double its rows, or is a broken link,
    which would leave them out.
    """
    matches = {
        path
        for pattern in patterns
        for suffix in ("", *COMPRESSED)
        for path in sources_dir.glob(_as_wildcard(pattern + suffix))
        if not path.name.startswith(".")
    }
    dangling = sorted(path for path in matches if path.is_symlink() and not path.exists())
    if dangling:
        raise DataError("is a broken link", on=dangling[0], hint="fetch the file again")
    found = {path for path in matches if path.is_file()}
    plain = Counter(_plain_name(path) for path in found)
    twice = [name for name, count in plain.items() if count > 1]
    if twice:
        raise DataError("is there plain and compressed, or compressed twice", on=twice[0], hint="keep one of them")
    return sorted(found)


def _as_wildcard(pattern: str) -> str:
    """The pattern with a wildcard in its last part: without one, glob does not return a broken link."""
    return re.sub(r"(\w)$", r"[\1]", pattern)


def _plain_name(path: Path) -> str:
    return str(path.with_suffix("")) if path.suffix in COMPRESSED else str(path)


def identify(path: Path, sources_dir: Path) -> SourceFile:
    """A raw file's name, size and hash.

    Raises: DataError if it is empty or only a large-file pointer, StorageError if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
        status, sha256 = path.stat(), file_sha256(path)
    except OSError as error:
        raise StorageError(
            f"cannot be read: {error.strerror or error}", on=path, hint="check its permissions and the disk"
        ) from error
    if not start:
        raise DataError("the file is empty", on=path, hint="download it again")
    if start.startswith(LARGE_FILE_POINTER):
        raise DataError("is a Git LFS pointer, not the data itself", on=path, hint="fetch the real file: git lfs pull")
    name = path.relative_to(sources_dir).as_posix()
    return SourceFile(path, name, status.st_size, sha256, status.st_mtime_ns)


def require_unchanged(file: SourceFile) -> None:
    """Make sure that the rows just read are those of the recorded hash.

    Raises: DataError if the file was written to in the meantime.
    """
    status = file.path.stat()
    if (status.st_size, status.st_mtime_ns) != (file.num_bytes, file.modified_ns):
        raise DataError("changed while it was read", on=file.path, hint="build again when it is no longer written to")


def read_rows(path: Path, max_bytes: int = MAX_ROW_BYTES) -> Iterator[tuple[int, RawRow]]:
    """The rows of a file with their numbers: the line in a .jsonl, the place in an array or a table, from 0.

    Of a line longer than `max_bytes` only the first `max_bytes` + 1 bytes are returned.

    Raises: DataError if the file is cut short or not in its format, or an array's item is several times `max_bytes`.
    """
    row = -1
    try:
        for row, value in _rows(path, max_bytes):
            yield row, value
    except (EOFError, OSError, zlib.error, zstd.ZstdError, ValueError, RecursionError) as error:
        place = "before the first row" if row < 0 else f"after row {row}"
        raise DataError(
            f"damaged or cut short {place}: {error}", on=path, hint="download it again and compare its size"
        ) from error


def _rows(path: Path, max_bytes: int) -> Iterator[tuple[int, RawRow]]:
    if _plain_name(path).endswith(".parquet"):
        with _unpacked(path) as plain:
            yield from enumerate(parquet_rows(plain))
        return
    with _open(path) as stream:
        is_array = _first_character(stream) == b"["
        stream.seek(0)
        if is_array:
            yield from enumerate(array_items(stream, CHARACTERS_PER_BYTE * max_bytes))
        else:
            yield from (
                (number, line)
                for number, line in enumerate(_lines(stream, max_bytes))
                if len(line) > max_bytes or line.strip()
            )


def _lines(stream: IO[bytes], max_bytes: int) -> Iterator[bytes]:
    while line := stream.readline(max_bytes + 1):
        yield line
        while len(line) > max_bytes and not line.endswith(b"\n"):  # skip the rest of it
            line = stream.readline(max_bytes + 1)


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast(IO[bytes], zstd.open(path, "rb"))
    return path.open("rb")


def _first_character(stream: IO[bytes]) -> bytes:
    """The first byte that is not blank or part of a byte-order mark; empty if there is none."""
    while block := stream.read(1 << 16):
        if rest := block.lstrip(b" \t\r\n\xef\xbb\xbf"):
            return rest[:1]
    return b""


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or a temporary uncompressed copy for a format that needs random access."""
    if path.suffix not in COMPRESSED:
        yield path
        return
    with tempfile.NamedTemporaryFile() as target:
        with _open(path) as source:
            shutil.copyfileobj(source, target)
        target.flush()
        yield Path(target.name)
