"""The memory of a build does not grow with its data, and no single row can fill it."""

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sft.data.shards import Shards

ROOT = Path(__file__).parents[2]
MB = 1_000_000
LIMIT_MB = 400
"""For builds of a few rows; a build of any size shall stay below 1.5 GiB."""

# Between the tests and the build: a process begins with the peak of the one that started it.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(usage * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)
"""


def peak_mb(raw: Any, out: Path, *settings: str) -> float:
    """The most memory that any process of `sft build` had, in MB."""
    words = [*raw.settings, f"out={out}", *settings]
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "sft.cli.main", "build", str(raw.mixture), *words]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr
    return int(child.stdout) / MB


def rows(count: int) -> Iterator[list[str]]:
    """Short conversations, no two of them alike."""
    choose = random.Random(count)
    for number in range(count):
        yield [f"question {number}?", f"answer {choose.random()}"]


def test_ten_times_the_rows_need_hardly_more_memory(write_mixture: Callable[..., Any]) -> None:
    """Some 100 bytes per document are held, and 2,000 per row are read. The smaller build has several chunks."""
    raw = write_mixture(alpha=[])
    notes = "-" * 2_000
    peaks, sizes = {}, {}
    for count in (2_000, 20_000):
        text = "".join(json.dumps({"turns": turns, "notes": notes}) + "\n" for turns in rows(count))
        (raw.sources_dir / "alpha.jsonl").write_text(text)
        out = raw.mixture.parent / f"out {count}"
        peaks[count] = peak_mb(raw, out, "seq_len=1024")
        table = Shards.open(out, check_hashes=False).documents
        assert len(table) == count
        sizes[count] = int(table.num_tokens.sum())
    assert sizes[20_000] > 9.9 * sizes[2_000]
    assert peaks[20_000] - peaks[2_000] < 25
    assert peaks[20_000] < LIMIT_MB


@pytest.mark.parametrize("num_rows", [20_000, 60], ids=["rows of 3 kB", "rows of 1 MB"])
def test_a_parquet_file_of_one_row_group_is_not_held_whole(num_rows: int, write_mixture: Callable[..., Any]) -> None:
    """One of 60 MB needs hardly more memory than one of 6 MB."""
    raw = write_mixture(alpha=[])
    recipe = raw.recipes / "alpha" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("alpha.jsonl", "alpha.parquet"))
    random_bytes = random.Random(num_rows).randbytes
    peaks = []
    for count in (num_rows // 10, num_rows):
        notes = [random_bytes(30_000_000 // num_rows).hex() for _ in range(count)]
        table = pa.table({"turns": list(rows(count)), "notes": notes})
        path = raw.sources_dir / "alpha.parquet"
        parquet.write_table(table, path, row_group_size=count, write_batch_size=max(1, count // 60))
        assert parquet.read_metadata(path).num_row_groups == 1
        out = raw.mixture.parent / f"out {count}"
        peaks.append(peak_mb(raw, out, "seq_len=1024"))
        assert len(Shards.open(out).documents) == count
    assert peaks[1] - peaks[0] < 35
    assert peaks[1] < LIMIT_MB


def lines_around(line: Callable[[Any], object], stream: Any) -> None:
    """A hundred good rows, and one in their middle that is too large."""
    for number, turns in enumerate(rows(100)):
        if number == 50:
            line(stream)
            stream.write(b"\n")
        stream.write(json.dumps({"turns": turns}).encode() + b"\n")


def whole_row_of_100_mb(stream: Any) -> None:
    """JSON that a recipe could read, were it not so long."""
    stream.write(b'{"turns": ["How long?", "')
    for _ in range(100):
        stream.write(b"very long " * (MB // 10))
    stream.write(b'"]}')


def bomb_of_300_mb(stream: Any) -> None:
    """Zeros, a thousand of which take one byte."""
    for _ in range(300):
        stream.write(bytes(MB))


@pytest.mark.parametrize(
    ("name", "line", "start"),
    [("alpha.jsonl", whole_row_of_100_mb, '{"turns": ["How long?"'), ("alpha.jsonl.gz", bomb_of_300_mb, "\x00" * 10)],
    ids=["100 MB of text", "gzip of 300 MB"],
)
def test_a_row_of_any_size_is_dropped_in_bounded_memory(
    name: str, line: Callable[[Any], object], start: str, write_mixture: Callable[..., Any]
) -> None:
    raw = write_mixture(alpha=[])
    (raw.sources_dir / "alpha.jsonl").unlink()
    with (
        gzip.open(raw.sources_dir / name, "wb", 1) if name.endswith(".gz") else (raw.sources_dir / name).open("wb")
    ) as stream:
        lines_around(line, stream)
    out = raw.mixture.parent / "out"
    assert peak_mb(raw, out) < LIMIT_MB
    shards = Shards.open(out)
    (record,) = shards.quarantine()
    place = (record["source"], record["file"], record["row"], record["reason"])
    assert place == ("alpha", name, 50, "row_too_large")
    assert record["excerpt"].startswith(start)
    assert len(record["excerpt"]) <= 200
    assert "4,000,000 bytes" in record["detail"]
    assert shards.documents.row.tolist() == [row for row in range(101) if row != 50]


def test_the_largest_row_that_is_read_fits_into_memory(write_mixture: Callable[..., Any]) -> None:
    """The tokenizer takes more than a hundred bytes for each byte of text."""
    raw = write_mixture(alpha=[["Short?", "Yes."], ["How long?", "very long " * 399_990]])
    out = raw.mixture.parent / "out"
    assert peak_mb(raw, out) < 1100
    (record,) = Shards.open(out).quarantine()
    assert (record["row"], record["reason"]) == (1, "too_long")
