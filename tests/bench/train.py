"""The time of a training step, ours beside Hugging Face's Trainer: same shape, weights, packs, optimizer and threads.

    python tests/bench/train.py --shards build/stablelm_tuned_alpha --out train.json

Every measurement runs in an interpreter of its own on the same cores; they take turns. A step lasts until the next one
begins, so reading data and logging are in it; the first ones are left out, and of each of the others its fastest
repetition counts. Losses and gradient norms of all steps are compared: all do the same work.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hf_trainer import KINDS, prepare_peer
from measured import Prepare, choose_cores, measured
from own_trainer import PARTS, prepare_own, prepare_weights
from steps import Work
from table import facts, show, write

PACKAGES = ("torch", "transformers", "accelerate", "numpy")
OURS = "sft train"
Figures = dict[str, Any]


def jobs(work: Work, ranks: list[str]) -> Iterator[tuple[str, Prepare]]:
    """Every trainer: its name, its preparation."""
    yield OURS, partial(prepare_own, work)
    for kind in ranks:
        yield f"HF Trainer, {kind}", partial(prepare_peer, work, kind)


def compare(work: Work, ranks: list[str], cores: set[int], repetitions: int) -> dict[str, Figures]:
    """Every trainer's runs, joined."""
    runs: dict[str, list[Figures]] = {}
    for _ in range(repetitions):
        for name, prepare in jobs(work, ranks):
            work.scratch.mkdir()
            found = measured(prepare, cores)
            shutil.rmtree(work.scratch)
            step_s = sum(found["steps_s"][work.warmup :]) / work.steps
            print(f"{work.precision}, {name}: {step_s:.3f} s a step", file=sys.stderr, flush=True)
            runs.setdefault(name, []).append(found)
    return {name: joined(found, work.warmup) for name, found in runs.items()}


def joined(runs: list[Figures], warmup: int) -> Figures:
    """One trainer's repetitions: of each step the fastest, by the clock and in CPU time."""

    def fastest(name: str) -> list[int]:
        columns = zip(*(run[name][warmup:] for run in runs), strict=True)
        return [column.index(min(column)) for column in columns]

    def mean(name: str, chosen: list[int]) -> float:
        return sum(runs[number][name][warmup + step] for step, number in enumerate(chosen)) / len(chosen)

    by_clock = fastest("steps_s")
    parts = [name for name in ("tokens", *(f"{part}_s" for part in PARTS)) if name in runs[0]]
    return {
        "step_s": mean("steps_s", by_clock),
        "step_cpu_s": mean("steps_cpu_s", fastest("steps_cpu_s")),
        **{name: mean(name, by_clock) for name in parts},
        "max_rss_mib": max(run["main_max_rss_mib"] for run in runs),
        "runs": runs,
    }


def summary(found: dict[str, Figures], tokens: float) -> Iterator[dict[str, Any]]:
    own = found[OURS]
    for name, trainer in found.items():
        yield {
            "trainer": name,
            "step_s": trainer["step_s"],
            "tokens_per_s": tokens / trainer["step_s"],
            "x_ours": trainer["step_s"] / own["step_s"],
            "cpu_s": trainer["step_cpu_s"],
            "x_ours_cpu": trainer["step_cpu_s"] / own["step_cpu_s"],
            "loss_differs": furthest("losses", own, trainer),
            "norm_differs": furthest("grad_norms", own, trainer),
            "max_rss_mib": trainer["max_rss_mib"],
        }


def furthest(name: str, own: Figures, other: Figures) -> float:
    """The largest relative difference over all steps of the first runs."""
    pairs = zip(own["runs"][0][name], other["runs"][0][name], strict=True)
    return max(abs(theirs - ours) / abs(ours) for ours, theirs in pairs)


def overhead(own: Figures) -> Iterator[dict[str, Any]]:
    """What our steps spend outside of the arithmetic; `rest` is the loop itself, from one step's start to the next."""
    outside = {name: own[f"{name}_s"] for name in PARTS[1:]}
    whole = own["step_s"] - own["engine_s"]
    for part, seconds in {**outside, "rest": whole - sum(outside.values()), "all": whole}.items():
        yield {"outside_of_the_engine": part, "ms_a_step": seconds * 1e3, "share": seconds / own["step_s"]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="a build")
    parser.add_argument("--preset", default="small_cpu", help="model shape")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--peers", nargs="+", choices=KINDS, default=KINDS, help="ways to run HF Trainer")
    parser.add_argument("--batch-packs", type=int, default=2, help="packs of an optimizer step")
    parser.add_argument("--micro-batch-packs", type=int, default=1, help="packs of a forward pass")
    parser.add_argument("--threads", type=int, default=1, help="cores and threads")
    parser.add_argument("--warmup", type=int, default=2, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each trainer")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    figures = facts(*PACKAGES)
    cores = set(choose_cores()[: options.threads])
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as name:
        weights = Path(name) / "weights"
        figures |= measured(partial(prepare_weights, options.shards, options.preset, 0, weights), cores)
        for precision in options.precision:
            shape = (options.batch_packs, options.micro_batch_packs, options.threads, options.warmup, options.steps)
            work = Work(options.shards.resolve(), weights, Path(name) / "scratch", precision, *shape)
            found = compare(work, options.ranks, cores, options.repeat)
            rows, parts = list(summary(found, found[OURS]["tokens"])), list(overhead(found[OURS]))
            title = f"{precision}, {options.threads} threads, {options.batch_packs} packs a step; each step's best of"
            show(f"{title} {options.repeat}", rows, tokens_per_s=",.0f", loss_differs=".1e", norm_differs=".1e")
            show("sft train", parts, ms_a_step=",.2f", share=".2%")
            figures[precision] = {"table": rows, "outside_of_the_engine": parts, "measurements": found}
    write(options.out, figures | {"preset": options.preset, "threads": options.threads})


if __name__ == "__main__":
    main()
