"""Our packer beside others, on the same lengths in one run: python tests/bench/pack.py [--shards FOLDER].

Seconds are the best of three repetitions on one thread. A slow packer gets fewer of the documents, the first of them;
its lower bound is that of these. The others take longer in proportion to the documents; ours also takes some
microseconds for each different length, which few documents show.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from table import facts, show, write

from sft.data.build.packing import pack
from sft.data.shards import Shards

CAPACITY = 4096
REPETITIONS = 3
GROUP = 100_000
Lengths = NDArray[np.uint32]


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    lengths: str
    packer: str
    documents: int
    bins: int
    over_lower_bound: int
    density: float
    seconds_per_million: float
    times_ours: float


@dataclass(frozen=True)
class Packer:
    """A way to pack; `prepare` does what is not timed and returns what is: a function that counts the bins it made."""

    name: str
    prepare: Callable[[Lengths], Callable[[], int]]
    max_documents: int = sys.maxsize


def prepare_ours(lengths: Lengths) -> Callable[[], int]:
    return lambda: len(pack(lengths, CAPACITY))


def prepare_next_fit(lengths: Lengths) -> Callable[[], int]:
    return lambda: len(next_fit(lengths.tolist()))


def next_fit(lengths: list[int]) -> list[list[int]]:
    """In the given order: what does not fit opens a new bin, and the bin before is never looked at again."""
    bins: list[list[int]] = []
    space = 0
    for index, length in enumerate(lengths):
        if length > space:
            bins.append([])
            space = CAPACITY
        bins[-1].append(index)
        space -= length
    return bins


def prepare_first_fit(lengths: Lengths) -> Callable[[], int]:
    return lambda: sum(len(first_fit(group)) for group in groups(lengths))


def prepare_first_fit_decreasing(lengths: Lengths) -> Callable[[], int]:
    return lambda: sum(len(first_fit(np.sort(group)[::-1])) for group in groups(lengths))


def groups(lengths: Lengths) -> Iterator[Lengths]:
    for start in range(0, len(lengths), GROUP):
        yield lengths[start : start + GROUP]


def first_fit(lengths: Lengths) -> list[list[int]]:
    """Each document into the first bin that has room, as in axolotl's groups."""
    spaces = np.full(len(lengths) + 1, CAPACITY, np.uint16)  # the bin after the last is an empty one
    bins: list[list[int]] = []
    for index, length in enumerate(lengths.tolist()):
        bin_ = int((spaces[: len(bins) + 1] >= length).argmax())
        if bin_ == len(bins):
            bins.append([])
        bins[bin_].append(index)
        spaces[bin_] -= length
    return bins


def prepare_trl(lengths: Lengths) -> Callable[[], int]:
    """TRL packs a data set, tokens included; here the tokens are zeros. Not imported above: it may be absent."""
    import datasets
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    column = pa.ListArray.from_arrays(ends, pa.array(np.zeros(ends[-1], np.int32)))
    dataset = datasets.Dataset(pa.table({"input_ids": column}))
    return lambda: len(pack_dataset(dataset, CAPACITY, strategy="bfd"))


OURS = Packer("ours", prepare_ours)
PEERS = (
    Packer("TRL bfd, map batches of 1,000, tokens moved", prepare_trl, 100_000),
    Packer("first-fit in groups of 100,000, numpy", prepare_first_fit, 100_000),
    Packer("first-fit decreasing in groups of 100,000, numpy", prepare_first_fit_decreasing, 100_000),
    Packer("next-fit, Python", prepare_next_fit),
)


def measure(name: str, lengths: Lengths) -> Iterator[Result]:
    """Every packer on one set of lengths."""
    ours = _measured(name, OURS, lengths, None)
    yield ours
    for packer in PEERS:
        if packer.prepare is prepare_trl and importlib.util.find_spec("trl") is None:
            print(f"{packer.name}: skipped, TRL is not installed", file=sys.stderr)
        else:
            yield _measured(name, packer, lengths, ours)


def _measured(name: str, packer: Packer, lengths: Lengths, ours: Result | None) -> Result:
    lengths = lengths[: packer.max_documents]
    run = packer.prepare(lengths)
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        bins = run()
        seconds.append(time.perf_counter() - start)
    num_tokens, per_million = int(lengths.sum(dtype=np.int64)), min(seconds) / len(lengths) * 1e6
    return Result(
        name,
        packer.name,
        documents=len(lengths),
        bins=bins,
        over_lower_bound=bins - -(-num_tokens // CAPACITY),
        density=num_tokens / (bins * CAPACITY),
        seconds_per_million=per_million,
        times_ours=per_million / ours.seconds_per_million if ours else 1.0,
    )


def synthetic(count: int) -> Lengths:
    """Log-normal lengths: median 245, mean about 577, nothing over the capacity."""
    lengths = np.random.default_rng(0).lognormal(np.log(245), 1.425, count)
    return np.clip(lengths, 1, CAPACITY).astype(np.uint32)


def real(folder: Path, count: int) -> Iterator[tuple[str, Lengths]]:
    """The lengths of a build's training documents: as they are, and as many as asked for, drawn from them."""
    documents = Shards.open(folder, check_hashes=False).documents
    lengths = documents.num_tokens[~documents.held_out].astype(np.uint32)
    yield "real", lengths
    yield "real, resampled", np.random.default_rng(0).choice(lengths, count)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--shards", type=Path, help="a build, for real lengths")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    figures = facts("numpy", "datasets", "trl")
    sets = [("log-normal", synthetic(options.documents))]
    if options.shards:
        sets += real(options.shards, options.documents)
    results = [result for name, lengths in sets for result in measure(name, lengths)]
    rows = [asdict(result) for result in results]
    show(f"Bins of {CAPACITY:,} tokens", rows, density=".4%")
    write(options.out, figures | {"results": rows})


if __name__ == "__main__":
    main()
