"""The whole build beside the tokenizer alone and beside the libraries a script would use, all in one run.

    python tests/bench/build.py --rows FOLDER --tokenizer 20B_tokenizer.json --out build.json [KEY=VALUE …]

FOLDER holds the raw files of the mixture; settings switch off the sources that are not there. Every measurement runs in
an interpreter of its own on cores of its own; they take turns, and the fastest of the repetitions counts. The peer gets
the finished text of every document for nothing; it checks nothing, drops nothing and makes no loss mask.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from builds import prepare_build, prepare_inputs
from measured import Prepare, choose_cores, measured
from rivals import prepare_fastokens, prepare_peer, prepare_tokenizers
from table import facts, show, write

ROOT = Path(__file__).parents[2]
PACKAGES = ("tokenizers", "fastokens", "datasets", "pyarrow", "numpy", "transformers", "trl")
TURNS, DOCUMENTS = "HF tokenizers alone, turns", "HF tokenizers alone, documents"
COMPARED = {TURNS: "hf_turns", DOCUMENTS: "hf_documents", "datasets + TRL, 1 core": "peer"}


def jobs(
    folder: Path, scratch: Path, mixture: Path, settings: list[str], num_cores: int
) -> Iterator[tuple[str, Prepare, int]]:
    """Every measurement: its name, its preparation, on how many cores."""
    yield TURNS, partial(prepare_tokenizers, folder, "turns"), 1
    yield DOCUMENTS, partial(prepare_tokenizers, folder, "documents"), 1
    backends = ["tokenizers"]
    if importlib.util.find_spec("fastokens"):
        yield "fastokens alone, turns", partial(prepare_fastokens, folder), 1
        backends.append("fastokens")
    for backend in backends:
        for count in sorted({1, min(2, num_cores), num_cores}):
            own = [*settings, f"tokenizer_backend={backend}", f"workers={count}"]
            yield f"sft build, {backend}, {count} core", partial(prepare_build, mixture, own, scratch / "out"), count
    if importlib.util.find_spec("trl"):
        for count in sorted({1, num_cores}):
            yield f"datasets + TRL, {count} core", partial(prepare_peer, folder, scratch, count), count


Figures = dict[str, Any]


def compare(folder: Path, mixture: Path, settings: list[str], repetitions: int) -> tuple[Figures, dict[str, Figures]]:
    """The rows that were built, and the fastest run of every measurement."""
    cores = choose_cores()
    inputs = measured(partial(prepare_inputs, mixture, settings, folder), set(cores))
    best: dict[str, Figures] = {}
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        for name, prepare, count in jobs(folder, folder / "scratch", mixture, settings, len(cores)):
            (folder / "scratch").mkdir()
            found = measured(prepare, set(cores[:count]))
            shutil.rmtree(folder / "scratch")
            print(f"{name}: {found['seconds']:.2f} s", file=sys.stderr, flush=True)
            seconds[name].append(found["seconds"])
            found["all_seconds"] = seconds[name]
            best[name] = min(best.get(name, found), found, key=lambda run: run["seconds"])
    return inputs, best


def summary(best: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, found in best.items():
        times = {f"x_{what}": _times(best.get(other), found) for other, what in COMPARED.items()}
        yield {
            "what": name,
            "seconds": found["seconds"],
            "cpu_s": found["cpu_s"],
            "with_start_s": found["with_start_s"],
            "mtok_per_s": found["tokens"] / found["seconds"] / 1e6,
            **times,
            "density": found.get("density"),
            "peak_rss_mib": found["peak_mib"]["rss"],
            "peak_pss_mib": found["peak_mib"]["pss"],
        }


def _times(other: dict[str, Any] | None, found: dict[str, Any]) -> float | None:
    return None if other is None else float(other["seconds"] / found["seconds"])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="folder of raw files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--mixture", type=Path, default=ROOT / "data_recipes/mixtures/stablelm_tuned_alpha.yaml")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each measurement")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", default=["sources.gpt4all.enabled=false"])
    options = parser.parse_args()
    figures = facts(*PACKAGES)
    settings = [*options.settings, f"sources_dir={options.rows}", f"tokenizer={options.tokenizer}"]
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HOME": name, "HF_HUB_OFFLINE": "1"}
        inputs, best = compare(Path(name), options.mixture, settings, options.repeat)
    rows = list(summary(best))
    title = f"{inputs['rows']:,} raw rows, best of {options.repeat}; x: how many times as fast, on the same rows"
    show(title, rows, density=".3%")
    digests = {found["content_digest"] for found in (inputs, *best.values()) if "content_digest" in found}
    print(f"\nAll builds byte-identical: {'yes' if len(digests) == 1 else 'NO'}")
    write(options.out, figures | {"inputs": inputs, "table": rows, "measurements": best})


if __name__ == "__main__":
    main()
