"""Reading shards: opening, packs at random, packs in order; beside `datasets` on the same file in the same run.

    python tests/bench/shards.py --shards FOLDER --out shards.json

FOLDER is a build. Its files lie in the page cache for every reader; each measurement runs in an interpreter of its own
on one core, they take turns, and the fastest of the repetitions counts. Of every pack all input ids and the whole loss
mask are summed, unless it says that they are only handed over.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measured import Job, Prepare, choose_cores, measured
from table import facts, show, write

OPENINGS = 50
Touch = Callable[[Any], int]


def look(array: Any) -> int:
    """Read every value."""
    return int(np.asarray(array).sum())


def hand_over(array: Any) -> int:
    """Read none."""
    return len(array)


def open_own(folder: Path) -> Any:
    from sft.data.shards import Shards

    return Shards.open(folder).split("train")


def open_library(folder: Path) -> Any:
    import pyarrow as pa
    from datasets import Dataset, concatenate_datasets

    # Not Dataset.from_file, which reads only streams, nor load_dataset, which would first write a copy.
    files = sorted(folder.glob("train-*.arrow"))
    tables = [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]
    return concatenate_datasets([Dataset(table) for table in tables]).with_format("numpy")


def fields_own(pack: Any) -> tuple[Any, Any]:
    return pack.input_ids_T, pack.loss_mask_T


def fields_library(row: Any) -> tuple[Any, Any]:
    return row["input_ids"], row["loss_mask"]


READERS = {"sft": (open_own, fields_own), "datasets": (open_library, fields_library)}


def prepare_open(reader: str, folder: Path) -> Job:
    """Open a build up to its first pack, many times; imports and the first time are not counted."""
    opened, fields = READERS[reader]
    opened(folder)

    def run() -> list[float]:
        seconds = []
        for _ in range(OPENINGS):
            start = time.perf_counter()
            look(fields(opened(folder)[0])[0])
            seconds.append(time.perf_counter() - start)
        return seconds

    return run, lambda seconds: {"count": 1, "best_s": min(seconds), "median_s": statistics.median(seconds)}


def prepare_read(reader: str, folder: Path, touch: Touch, count: int, shuffled: bool) -> Job:
    """Read packs, at random or in order."""
    opened, fields = READERS[reader]
    packs = opened(folder)
    num_tokens = len(fields(packs[0])[0])
    numbers = np.random.default_rng(0).integers(len(packs), size=count) if shuffled else np.arange(count) % len(packs)
    order = numbers.tolist()
    for number in range(len(packs)):
        look(fields(packs[number])[0])  # into the page cache, and into this process

    def run() -> int:
        total = 0
        for number in order:
            ids, mask = fields(packs[number])
            total += touch(ids) + touch(mask)
        return total

    return run, lambda total: {"count": count, "tokens": count * num_tokens, "check": total}


def jobs(folder: Path, num_packs: int) -> Iterator[tuple[str, str, Prepare]]:
    """Every measurement: what is done, by whom, its preparation."""
    counts = {"sft": num_packs, "datasets": num_packs // 20}
    for reader in READERS:
        yield "open, first pack", reader, partial(prepare_open, reader, folder)
    for what, touch, shuffled in (
        ("random packs, handed over", hand_over, True),
        ("random packs, summed", look, True),
        ("packs in order, summed", look, False),
    ):
        for reader, count in counts.items():
            yield what, reader, partial(prepare_read, reader, folder, touch, count, shuffled)


def summary(best: dict[tuple[str, str], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for (what, reader), found in best.items():
        each_s = each(found)
        yield {
            "what": what,
            "reader": reader,
            "count": found["count"],
            "us_each": each_s * 1e6,
            "per_s": 1 / each_s,
            "mtok_per_s": found["tokens"] / found["seconds"] / 1e6 if "tokens" in found else None,
            "x_datasets": each(best[what, "datasets"]) / each_s,
        }


def each(found: dict[str, Any]) -> float:
    """Seconds for one opening or pack."""
    return float(found.get("median_s") or found["seconds"] / found["count"])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="a build")
    parser.add_argument("--packs", type=int, default=100_000, help="packs to read; datasets reads a twentieth of them")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each measurement")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    figures = facts("datasets", "pyarrow", "numpy")
    cores = choose_cores()
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(options.repeat):
        for what, reader, prepare in jobs(options.shards, options.packs):
            found = measured(prepare, {cores[0]})
            best[what, reader] = min(best.get((what, reader), found), found, key=each)
    rows = list(summary(best))
    show(f"Best of {options.repeat} on one core", rows, us_each=",.2f", per_s=",.0f")
    write(options.out, figures | {"shards": str(options.shards.name), "table": rows})


if __name__ == "__main__":
    main()
