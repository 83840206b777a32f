"""Planted bugs: the short run must turn red for each. A fault suite that has never failed proves nothing.

python -m tests.faults.mutations [NAME …] [--report FOLDER]
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.faults import failpoints
from tests.faults.fixtures import Material
from tests.faults.oracle import LOST, SLOW, WRONG
from tests.faults.report import MARKDOWN, Result, gist
from tests.faults.runner import Job, jobs_of, run_all, warmed_up

HEADING = "## Planted bugs"


@dataclass(frozen=True)
class Mutation:
    """One guarantee taken out of the product."""

    name: str
    apply: Callable[[], None]
    near: tuple[str, ...]
    """Kinds that are tried first, because they should notice; the rest of the short run follows."""


def instead(target: str, function: Callable[..., Any]) -> Callable[[], None]:
    """A mutation: `function(original, …)` takes the place of the target."""
    return lambda: failpoints.replace(target, function)


def nothing(_original: Any, *_arguments: Any, **_named: Any) -> None:
    """Do not do it."""


@contextlib.contextmanager
def unstaged(_original: Any, final: Path) -> Iterator[Path]:
    """Write under the final name from the start."""
    final.mkdir(parents=True)
    yield final


def unstaged_checkpoints() -> None:
    """Write checkpoints under their final names from the start."""
    from sft.train.checkpoint import async_writer, store

    for module in (store, async_writer):
        module.staging_path = lambda final: final  # type: ignore[attr-defined]
    kept = types.SimpleNamespace(rmtree=lambda *_, **__: None, disk_usage=shutil.disk_usage)
    store.shutil = kept  # type: ignore[attr-defined]


def retire_in_place(_original: Any, checkpoints: Path, config: Any) -> None:
    """Delete old checkpoints without taking their names away first."""
    for folder in sorted(checkpoints.glob("step-*"), reverse=True)[config.keep_last :]:
        shutil.rmtree(folder)


def shifted(original: Any, packs: Any, *rest: Any, **named: Any) -> Any:
    """Let every mask begin and end one token late."""
    return original([replace(pack, loss_mask_T=np.roll(pack.loss_mask_T, 1)) for pack in packs], *rest, **named)


def without_moments(original: Any, engine: Any, *arguments: Any) -> None:
    """Restore everything but the optimizer's moments."""
    optimizer = engine._optimizer
    original(engine, *arguments)
    optimizer.state.clear()


def one_step_ahead(original: Any, folder: Path) -> Any:
    """Take the step after the one that was saved for the next one."""
    state = original(folder)
    state.counts.num_steps += 1
    return state


def blind_to_nan() -> None:
    """Call every loss and gradient finite."""
    from sft.train.engine import native

    native.math = types.SimpleNamespace(isfinite=lambda _number: True, sqrt=math.sqrt)  # type: ignore[attr-defined]


def zero_moments() -> None:
    """Start again with zeros where a checkpoint holds no moments."""
    from sft.train.checkpoint.tensors import StoredSlices

    original = StoredSlices.flat

    def flat(stored: Any, kind: Any, name: str, start: int, stop: int) -> Any:
        if kind != "weight" and stored._moments is None:
            return torch.zeros(stop - start)
        return original(stored, kind, name, start, stop)

    StoredSlices.flat = flat  # type: ignore[method-assign]


def deaf_to_others() -> None:
    """Let every process stop on its own account."""

    def exchanging(original: Any, run: Any) -> None:
        original(run)
        run.stop.is_agreed = run.stop.reason() is not None

    failpoints.replace("sft.train.loop:exchange_status", exchanging)


def one_failure() -> None:
    """Give up at the first save that fails."""
    from sft.train.checkpoint import checkpointer

    checkpointer.MAX_FAILED_SAVES = 1


MUTATIONS = (
    Mutation(
        "files are not synced before the rename",
        instead("sft.train.checkpoint.async_writer:sync", nothing),
        ("A4", "A4b", "A2"),
    ),
    Mutation("the new name is not synced", instead("sft.train.checkpoint.store:sync_folder", nothing), ("A4b", "A4")),
    Mutation("a checkpoint is written under its final name", unstaged_checkpoints, ("A2",)),
    Mutation("a build is written under its final name", instead("sft.data.build.build:staged", unstaged), ("A15",)),
    Mutation(
        "files are not compared with their hashes",
        instead("sft.train.checkpoint.store:damaged_files", lambda *_: ()),
        ("B1",),
    ),
    Mutation(
        "old checkpoints are deleted in place",
        instead("sft.train.checkpoint.checkpointer:retire", retire_in_place),
        ("A14",),
    ),
    Mutation("leftovers are not cleaned", instead("sft.train.run_folder:clean", nothing), ("B6", "A2")),
    Mutation(
        "no folder lock", instead("sft.train.run_folder:folder_lock", lambda *_: contextlib.nullcontext()), ("H8",)
    ),
    Mutation("a changed run is not refused", instead("sft.train.run_folder:differences", lambda *_: []), ("B11",)),
    Mutation("masks are one token late", instead("sft.data.batches.batch:join", shifted), ("A5",)),
    Mutation(
        "moments are not restored", instead("sft.train.engine.native:TorchEngine.restore", without_moments), ("A5",)
    ),
    Mutation(
        "the loss scale is not restored", instead("sft.train.engine.loss_scale:LossScale.restore", nothing), ("A13",)
    ),
    Mutation("a resume skips a step", instead("sft.train.checkpoint.state:State.read", one_step_ahead), ("A5",)),
    Mutation("records past the restored step still count", instead("sft.train.setup:supersede", nothing), ("J5",)),
    Mutation("wishes to stop are not heard", instead("sft.train.stop:Stop.reason", nothing), ("A11", "A5")),
    Mutation("NaN is not seen", blind_to_nan, ("F1",)),
    Mutation("bad steps are endured for ever", instead("sft.train.monitor.health:reason_to_end", nothing), ("F2",)),
    Mutation(
        "an update does not wait for the copy",
        instead("sft.train.checkpoint.async_writer:AsyncWriter.before_update", nothing),
        ("A17",),
    ),
    Mutation(
        "a save is published before it is written",
        instead("sft.train.checkpoint.async_writer:AsyncWriter.wait", nothing),
        ("A1", "A2"),
    ),
    Mutation("processes do not tell each other of NaN", instead("torch.distributed:all_reduce", nothing), ("F1b",)),
    Mutation("moments that are missing are taken for zeros", zero_moments, ("B13",)),
    Mutation("a wish to stop is not shared", deaf_to_others, ("A7",)),
    Mutation("the first failed save ends the run", one_failure, ("H1", "H5")),
)


@dataclass(frozen=True)
class Found:
    """What the short run says of a mutation."""

    name: str
    num_run: int
    result: Result | None
    """The first injection that turned red."""


def hunt(mutation: Mutation, jobs: Sequence[Job], material: Material, num_processes: int) -> Found:
    """Run the short run with a mutation, in a fork, until an injection turns red."""
    ordered = sorted(jobs, key=lambda job: job[0].id not in mutation.near)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        mutation.apply()
        found: list[Any] = [0, None]
        with contextlib.closing(run_all(ordered, material, num_processes)) as results:
            for result in results:
                found[0] += 1
                if result.outcome in (LOST, WRONG, SLOW):
                    found[1] = [result.id, result.n, result.outcome, result.detail[:300], result.seconds]
                    break
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        num_run, red = json.loads(stream.read())
    os.waitpid(pid, 0)
    return Found(mutation.name, num_run, Result(*red) if red else None)


def table(found: Sequence[Found]) -> str:
    """The mutations and what noticed them."""
    rows = [HEADING, "", f"{sum(it.result is not None for it in found)} of {len(found)} turn the short run red.", ""]
    rows += ["| planted bug | noticed by | as | what is said |", "|---|---|---|---|"]
    for it in found:
        noticed = (it.result.id, it.result.outcome, gist(it.result)) if it.result else ("nothing", "", "")
        rows.append("| " + " | ".join((it.name, *noticed)) + " |")
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="part of the names of mutations")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="add the table to the one there")
    options = parser.parse_args()
    chosen = [it for it in MUTATIONS if not options.names or any(name in it.name for name in options.names)]
    with warmed_up() as material:
        jobs = jobs_of([], is_long=False)
        red = {result.id for result in run_all(jobs, material, options.processes) if result.is_bad}
        if red:
            print(f"red without any mutation, left out: {', '.join(sorted(red))}")
        jobs = [job for job in jobs if job[0].id not in red]
        found = []
        for mutation in chosen:
            found.append(hunt(mutation, jobs, material, options.processes))
            print(f"{mutation.name}: {found[-1].result or 'NOT NOTICED'}", flush=True)
    print(table(found))
    if options.report:
        path = options.report / MARKDOWN
        before = path.read_text().partition(HEADING)[0].rstrip() if path.exists() else ""
        path.write_text(f"{before}\n\n{table(found)}")
    return int(bool(red) or any(it.result is None for it in found))


if __name__ == "__main__":
    sys.exit(main())
