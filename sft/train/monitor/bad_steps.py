"""The bad steps, each as a file with its numbers and the raw rows that it trained on."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sft.data.documents import DocumentTable
from sft.data.shards import Split
from sft.errors import StorageError
from sft.storage.atomic import write_text
from sft.storage.json_file import read_json

MAX_FILES = 100
"""A run with bad steps for days must not fill the disk with similar files."""

log = logging.getLogger(__name__)


def write_bad_step(
    path: Path,
    split: Split,
    table: DocumentTable,
    step: int,
    packs: Sequence[int],
    *,
    ended_the_run: bool,
    **facts: Any,
) -> Path | None:
    """Write a step's numbers and every document in its packs; returns None if it cannot be written."""
    if not ended_the_run and len(list(path.parent.glob("*"))) >= MAX_FILES:
        log.warning("%s holds %d files: step %d is reported in metrics.jsonl only", path.parent, MAX_FILES, step)
        return None
    head = json.dumps({"step": step, "ended_the_run": ended_the_run, **facts}, allow_nan=False).removesuffix("}")
    # One line per document, for reading and grep.
    documents = ",\n".join(json.dumps(document, ensure_ascii=False) for document in _documents(split, table, packs))
    try:
        write_text(path, f'{head}, "documents": [\n{documents}\n]}}\n')
    except StorageError as error:
        log.warning("step %d is reported in metrics.jsonl only: %s", step, error)
        return None
    return path


def read_bad_step(path: Path) -> dict[str, Any] | None:
    """The content of a bad step's file, or None."""
    try:
        told = read_json(path)
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _documents(split: Split, table: DocumentTable, packs: Sequence[int]) -> Iterator[dict[str, Any]]:
    for pack in packs:
        for number, _ in split[pack].documents():
            yield {
                "pack": pack,
                "document": number,
                "source": table.sources[table.source[number]],
                "file": table.files[table.file[number]],
                "row": int(table.row[number]),
                "piece": int(table.piece[number]),
                "digest": f"{int(table.digest[number]):016x}",
                "tokens": int(table.num_tokens[number]),
                "supervised_tokens": int(table.num_supervised[number]),
            }
