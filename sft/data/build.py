"""Raw files → packed shards. Read `build` first: it is the whole story in order."""

import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from sft.chat.tokenizer import ChatTokenizer
from sft.config import BuildConfig
from sft.data.counts import SourceCounts, check
from sft.data.pool import run_chunks
from sft.data.publish import Inputs, publish_build, published
from sft.data.recipes import load_converter
from sft.data.shards import QUARANTINE, Shards
from sft.data.sources import RawRow, SourceFile, find_files, identify, read_rows, require_unchanged
from sft.data.spool import Spool
from sft.data.worker import Chunk, ChunkResult
from sft.errors import DataError
from sft.progress import progress
from sft.storage.lease import lease
from sft.storage.publish import staged

ROWS_PER_CHUNK = 500


def build(config: BuildConfig, recipes: Path) -> Shards:
    """Build the shards of a mixture and publish them as `config.out`; if they are there already, keep them.

    Raises: DataError for bad sources, ConfigError if `out` holds something else.
    """
    out = Path(config.out)
    config = replace(config, sources={name: item for name, item in sorted(config.sources.items()) if item.enabled})
    tokenizer = ChatTokenizer.load(config.tokenizer)
    for name in config.sources:
        load_converter(recipes / name)  # a recipe that cannot be loaded is told before any process starts
    inputs = Inputs(config, recipes, tokenizer, identify_sources(config))
    with lease(out.parent / f".{out.name}.lock"):
        existing = published(out, inputs)
        if existing is not None:
            return existing
        with staged(out) as folder, Spool(folder, inputs.id_type, inputs.source_names, inputs.file_names) as spool:
            counts = _fill(spool, folder, inputs)
            publish_build(folder, inputs, counts, spool.read())
    return Shards.open(out, check_hashes=False)


def identify_sources(config: BuildConfig) -> dict[str, list[SourceFile]]:
    """The raw files of every source.

    Raises: DataError naming all sources that have none.
    """
    folder = Path(config.sources_dir)
    if not folder.is_dir():
        raise DataError("no such folder of raw files", on=folder, hint="set sources_dir=…")
    found = {name: find_files(folder, source.files) for name, source in config.sources.items()}
    absent = [name for name, paths in found.items() if not paths]
    if absent:
        wanted = "; ".join(f"{name} (looked for {', '.join(config.sources[name].files)})" for name in absent)
        switches = " ".join(f"sources.{name}.enabled=false" for name in absent)
        raise DataError(f"no file for {wanted}", on=folder, hint=f"put the files there, or switch off: {switches}")
    return {name: [identify(path, folder) for path in paths] for name, paths in found.items()}


def _fill(spool: Spool, folder: Path, inputs: Inputs) -> dict[str, SourceCounts]:
    """Run every chunk, spool its documents, write down what is not kept, and count."""
    counts = {name: SourceCounts() for name in inputs.files}
    with (
        (folder / QUARANTINE).open("w", encoding="utf-8") as quarantine,
        progress("build", None, unit="rows") as advance,
        closing(run_chunks(inputs.config, inputs.recipes, _chunks(inputs))) as results,
    ):
        for name, group in itertools.groupby(results, key=lambda result: result.source):
            for result in group:
                spool.add(result)
                counts[name].add(result)
                quarantine.writelines(_quarantined(result))
                advance(result.num_rows, name)
            # Checked as soon as the source is done, so that a broken one stops the build early.
            check(name, inputs.config.sources[name], counts[name])
    for name, count in counts.items():
        if not count.rows_read:
            files = ", ".join(file.name for file in inputs.files[name])
            raise DataError(f"source {name} is empty: no row in {files}", hint="download it again")
    if not any(count.rows_kept for count in counts.values()):
        raise DataError("no row is left to build from", hint="raise the sources' weights")
    return counts


def _chunks(inputs: Inputs) -> Iterator[Chunk]:
    for name, source in inputs.config.sources.items():
        left = source.max_rows
        for file in inputs.files[name]:
            rows = itertools.islice(read_rows(file.path), left)
            for batch in _batches(rows):
                left = None if left is None else left - len(batch)
                yield Chunk(name, file.name, batch)
            require_unchanged(file)


def _batches(rows: Iterator[tuple[int, RawRow]]) -> Iterator[list[tuple[int, RawRow]]]:
    while batch := list(itertools.islice(rows, ROWS_PER_CHUNK)):
        yield batch


def _quarantined(result: ChunkResult) -> Iterator[str]:
    for item in result.rejected:
        record = {
            "source": result.source,
            "file": result.file,
            "row": item.row,
            "piece": item.piece,
            "reason": item.reason.value,
            "detail": item.detail,
            "excerpt": item.excerpt,
        }
        yield json.dumps(record, ensure_ascii=False) + "\n"
