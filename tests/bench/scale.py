"""How a build grows with its rows: time, stages, peak memory, and the time of `sft verify`.

    python tests/bench/scale.py --rows FOLDER --tokenizer 20B_tokenizer.json --times 1 4 10 --out scale.json

FOLDER holds raw rows as .jsonl or .jsonl.gz. They are written k times as plain .jsonl; every copy but the first has a
few seeded words before each question, so that no row is the duplicate of another. All cores; the first size is built
with the reference tokenizer as well, the others with fastokens if it is installed. The words of the copies are known to
a tokenizer that remembers words, so tokens per second above the first size flatter it.
"""

import argparse
import gzip
import importlib.util
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from builds import prepare_build, prepare_verify
from measured import choose_cores, measured
from table import facts, show, write

ROOT = Path(__file__).parents[2]
MAX_MIB = 1536


def multiply(rows: Path, times: int, folder: Path) -> None:
    """Write every raw file `times` times over."""
    folder.mkdir()
    for path in sorted([*rows.glob("*.jsonl"), *rows.glob("*.jsonl.gz")]):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as lines:
            raw = list(lines)
        rng = random.Random(f"{path.name} {times}")
        with (folder / path.name.removesuffix(".gz")).open("w", encoding="utf-8") as stream:
            stream.writelines(raw)
            for copy in range(1, times):
                stream.writelines(json.dumps(marked(json.loads(line), mark(rng, copy))) + "\n" for line in raw)


def mark(rng: random.Random, copy: int) -> str:
    """A few words that no other row begins with."""
    return f"Case {copy}-{rng.randrange(10**9)}: "


def marked(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The row with the text before its first question."""
    if "conversations" in row:
        turns = [dict(turn) for turn in row["conversations"]]
        for turn in [turn for turn in turns if turn["from"] in ("human", "user")][:1]:
            turn["value"] = text + turn["value"]
        return {**row, "conversations": turns}
    key = next(key for key in ("prompt", "chosen", "instruction") if key in row)
    before, label, question = row[key].partition("Human: ")
    return {**row, key: f"{before}{label}{text}{question}" if label else f"{text}{before}"}


def sizes(options: argparse.Namespace, settings: list[str], work: Path) -> Iterator[dict[str, Any]]:
    """Build and verify every size."""
    cores = choose_cores()
    fast = "fastokens" if importlib.util.find_spec("fastokens") else "tokenizers"
    for number, times in enumerate(options.times):
        multiply(options.rows, times, work / "raw")
        for backend in dict.fromkeys(["tokenizers", fast] if number == 0 else [fast]):
            own = [*settings, f"sources_dir={work / 'raw'}", f"workers={len(cores)}", f"tokenizer_backend={backend}"]
            built = measured(partial(prepare_build, options.mixture, own, work / "out"), set(cores))
            verified = measured(partial(prepare_verify, work / "out"), {cores[0]})
            shutil.rmtree(work / "out")
            yield {"times": times, "backend": backend, "cores": len(cores), "build": built, "verify": verified}
        shutil.rmtree(work / "raw")


def summary(found: dict[str, Any]) -> dict[str, Any]:
    build, verify = found["build"], found["verify"]
    stages = build["stages_s"]
    return {
        "times": found["times"],
        "backend": found["backend"],
        "rows": build["rows"],
        "documents": build["documents"],
        "mtok": build["tokens"] / 1e6,
        "seconds": build["seconds"],
        "inputs_s": stages["collect_inputs"],
        "units_s": build["seconds"] - sum(stages.values()),
        "publish_s": stages["publish_build"],
        "mtok_per_s": build["tokens"] / build["seconds"] / 1e6,
        **{f"{kind}_mib": value for kind, value in build["peak_mib"].items()},
        "main_max_rss_mib": build["main_max_rss_mib"],
        "worker_max_rss_mib": build["largest_child_max_rss_mib"],
        "verify_s": verify["seconds"],
        "verify_pss_mib": verify["peak_mib"]["pss"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="folder of raw files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--mixture", type=Path, default=ROOT / "data_recipes/mixtures/stablelm_tuned_alpha.yaml")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10], help="how many times the rows")
    parser.add_argument("--work", type=Path, help="folder for rows and builds; about 150 MB for each of --times")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    # Not a plain argument, which could not stand behind --times.
    parser.add_argument("--set", nargs="*", metavar="KEY=VALUE", default=["sources.gpt4all.enabled=false"])
    options = parser.parse_args()
    figures = facts("tokenizers", "fastokens", "pyarrow", "numpy")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        found = list(sizes(options, [*options.set, f"tokenizer={options.tokenizer}"], Path(name)))
    rows = [summary(size) for size in found]
    show("Peaks are the largest sums over all processes, each at its own moment", rows)
    worst = max(row["pss_mib"] for row in rows)
    print(f"\nPeak memory {worst:,.0f} MiB: {'below' if worst < MAX_MIB else 'ABOVE'} {MAX_MIB:,} MiB")
    write(options.out, figures | {"table": rows, "measurements": found})


if __name__ == "__main__":
    main()
