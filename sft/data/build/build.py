"""Raw files → packed shards. Read `build` first: it calls every stage in order."""

import itertools
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from sft.config.data import BuildConfig
from sft.console.progress import progress
from sft.data.build.chunk import Chunk, ChunkFile
from sft.data.build.counts import SourceCounts, check
from sft.data.build.fingerprint import Inputs, published
from sft.data.build.pool import run_chunks
from sft.data.build.worker import load_tokenizer
from sft.data.build.writer import publish_build, quarantined, write_lines
from sft.data.filters.contamination import EvaluationIndex
from sft.data.shards import QUARANTINE, Shards
from sft.data.sources.files import RawRow, SourceFile, find_files, identify, read_rows, require_unchanged
from sft.data.sources.lockfile import require_locked
from sft.data.sources.recipe import load_converter
from sft.data.sources.rows import row_size
from sft.errors import ConfigError, DataError
from sft.storage.atomic import staged
from sft.storage.folder_lock import folder_lock

# A chunk ends when it holds this much: small enough to balance the workers and to redo, with little overhead per chunk.
ROWS_PER_CHUNK = 2000
BYTES_PER_CHUNK = 2_000_000


@dataclass(frozen=True)
class Part:
    """One of several jobs that share the chunks of a build."""

    number: int
    """From 1."""
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Parse a part written as `I/N`.

        Raises: ConfigError if it is not valid.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"part {text}: expected I/N with I from 1 to N", hint="such as 2/8")
        return cls(int(match[1]), int(match[2]))

    def holds(self, chunk: int) -> bool:
        """Whether the chunk, counted from 0, is this job's."""
        return chunk % self.of == self.number - 1


def build(config: BuildConfig, recipes: Path) -> Shards:
    """Build the shards of a mixture and publish them as `config.out`; if they exist already, keep them.

    Chunks that an earlier, killed or failed build of the same rows finished are reused.

    Raises: DataError for bad sources, ConfigError if `out` holds something else.
    """
    out = Path(config.out)
    inputs = collect_inputs(config, recipes)
    with folder_lock(_lock(out), out):
        existing, work = published(out, inputs), _work(out)
        if existing is not None:
            shutil.rmtree(work, ignore_errors=True)  # left by a build that was killed after its last step
            return existing
        chunks, counts = _run(inputs, work)
        with staged(out) as folder:
            publish_build(folder, inputs, counts, chunks)
        shutil.rmtree(work, ignore_errors=True)
    return Shards.open(out, check_hashes=False)


def build_part(config: BuildConfig, recipes: Path, part: Part) -> int | None:
    """Make one job's share of the chunks, which a later `build` merges; returns their number, None if all is built."""
    out = Path(config.out)
    inputs = collect_inputs(config, recipes)
    with folder_lock(_lock(out), out, shared=True):
        if published(out, inputs) is not None:
            return None
        chosen = (chunk for number, chunk in enumerate(_chunks(inputs)) if part.holds(number))
        return sum(1 for _ in _finished(inputs, _work(out), chosen))


def collect_inputs(config: BuildConfig, recipes: Path) -> Inputs:
    """The inputs that determine the bytes of a build, with the raw files hashed.

    Raises: DataError naming all sources without a file, ConfigError for a recipe or tokenizer that cannot be loaded.
    """
    config = replace(config, sources={name: item for name, item in sorted(config.sources.items()) if item.enabled})
    tokenizer = load_tokenizer(config)
    for name, source in config.sources.items():
        load_converter(recipes / name, source.switches)  # report a broken recipe before any process starts
    if config.evaluation_files:
        # Loaded only to report errors now; every worker loads its own copy.
        EvaluationIndex.load([Path(file) for file in config.evaluation_files], config.evaluation_ngram_words)
    files = identify_sources(config)
    require_locked(Path(config.sources_dir), files)
    return Inputs(config, recipes, tokenizer, files)


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
        raise DataError(
            f"no file for {wanted}", on=folder, hint=f"put the files there (sft fetch), or switch off: {switches}"
        )
    _require_apart(found)
    files = {name: [identify(path, folder) for path in paths] for name, paths in found.items()}
    _require_distinct([file for group in files.values() for file in group])
    return files


def _require_distinct(files: Sequence[SourceFile]) -> None:
    """Make sure that no two files are equal, which would double their rows.

    Raises: DataError naming both files.
    """
    seen: dict[str, str] = {}
    for file in files:
        other = seen.setdefault(file.sha256, file.name)
        if other != file.name:
            raise DataError(f"holds the same bytes as {other}", on=file.path, hint="keep one of them")


def _require_apart(found: Mapping[str, Sequence[Path]]) -> None:
    """Make sure that no file belongs to two sources.

    Raises: ConfigError naming the file and both sources.
    """
    owners: dict[Path, str] = {}
    for name, paths in found.items():
        for path in paths:
            other = owners.setdefault(path, name)
            if other != name:
                hint = f"narrow sources.{other}.files or sources.{name}.files, or move the file"
                raise ConfigError(f"is claimed by two sources, {other} and {name}", on=path, hint=hint)


def _lock(out: Path) -> Path:
    return out.parent / f".{out.name}.lock"


def _work(out: Path) -> Path:
    """The folder of finished chunks until the build is published."""
    return out.parent / f".{out.name}.work"


def _run(inputs: Inputs, work: Path) -> tuple[list[ChunkFile], dict[str, SourceCounts]]:
    """Make every chunk of the build and count the rows of each source.

    Raises: DataError if a source is empty or not what its recipe expects.
    """
    counts = {name: SourceCounts() for name in inputs.files}
    chunks: list[ChunkFile] = []
    try:
        for name, group in itertools.groupby(_finished(inputs, work, _chunks(inputs)), key=lambda chunk: chunk.source):
            for chunk in group:
                chunks.append(chunk)
                counts[name].add(chunk)
            # Checked as soon as the source is done, so that a bad source stops the build early.
            check(name, inputs.config.sources[name], counts[name])
        for name, count in counts.items():
            if not count.rows_read:
                files = ", ".join(file.name for file in inputs.files[name])
                raise DataError(f"source {name} is empty: no row in {files}", hint="download it again")
    except DataError as error:
        raise _with_quarantine(error, work, chunks) from error
    return chunks, counts


def _with_quarantine(error: DataError, work: Path, chunks: list[ChunkFile]) -> DataError:
    """The error with a hint that names the file of all rows dropped so far."""
    if not chunks:
        return error
    write_lines(work / QUARANTINE, quarantined(chunks))
    hints = [error.hint] if error.hint else []
    return DataError(error.what, on=error.on, hint="; ".join([*hints, f"every dropped row is in {work / QUARANTINE}"]))


def _finished(inputs: Inputs, work: Path, chunks: Iterator[Chunk]) -> Iterator[ChunkFile]:
    work.mkdir(parents=True, exist_ok=True)
    with (
        progress("build", None, unit="rows") as advance,
        closing(
            run_chunks(inputs.config, inputs.recipes, work, chunks, inputs.tokenizer, inputs.ingredients)
        ) as finished,
    ):
        for chunk in finished:
            advance(chunk.header["num_rows"], chunk.source)
            yield chunk


def _chunks(inputs: Inputs) -> Iterator[Chunk]:
    """All raw rows in order, cut into chunks; the cuts depend on the file alone."""
    for name, source in inputs.config.sources.items():
        left = source.max_rows
        for file in inputs.files[name]:
            digest = inputs.chunk_digest(name, file)
            rows = itertools.islice(read_rows(file.path, inputs.config.max_row_bytes), left)
            for batch in _batches(rows):
                left = None if left is None else left - len(batch)
                require_unchanged(file)  # otherwise the hash could be that of another version of the file
                yield Chunk(name, file.name, batch, f"{digest[:32]}-{batch[0][0]}-{len(batch)}")
            require_unchanged(file)


def _batches(rows: Iterator[tuple[int, RawRow]]) -> Iterator[list[tuple[int, RawRow]]]:
    batch: list[tuple[int, RawRow]] = []
    num_bytes = 0
    for number, row in rows:
        batch.append((number, row))
        num_bytes += row_size(row)
        if len(batch) == ROWS_PER_CHUNK or num_bytes >= BYTES_PER_CHUNK:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch
