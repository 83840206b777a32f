"""Read the rows of a Parquet file of any size in batches. Besides the shards, the only file that imports pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_BATCH_ROWS = 1000
BATCH_BYTES = 8_000_000
"""Text in memory at a time, if no row is longer."""
READ_BYTES = 1 << 20


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an uncompressed .parquet file.

    Raises: ValueError or OSError if it is damaged or holds a value that Python cannot represent.
    """
    try:
        # By default a whole row group is prefetched, and most files are a single row group.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(str(error)) from error


def _batch_rows(metadata: Any) -> int:
    num_bytes: int = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * int(metadata.num_rows) // max(1, num_bytes)))
