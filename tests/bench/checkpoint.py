"""How long a save keeps training waiting: in the foreground, in our thread, and with PyTorch's asynchronous one.

    python tests/bench/checkpoint.py --out checkpoint.json

A model from scratch takes steps on random tokens and saves every few of them, weights and both moments; the three ways
take turns. `stall` is what the training thread waits in all: from asking to going on, and at the next update for the
copy. `steps_slower` compares the steps that a save runs beside with the others. PyTorch's way does not hash its files.
"""

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from table import facts, show, write

from sft.config.model import InitConfig, ModelConfig
from sft.config.train import TrainConfig
from sft.data.batches.batch import Batch
from sft.model.neox.model import NeoX
from sft.model.objectives.next_token import NextToken
from sft.train.checkpoint.async_writer import AsyncWriter
from sft.train.checkpoint.initial_weights import StartingWeights
from sft.train.distributed.ranks import SINGLE
from sft.train.engine.native import TorchEngine

NUMBERS = itertools.count(1)
"""Every save has a step of its own."""


def make_engine(shape: ModelConfig) -> TorchEngine:
    init = InitConfig("scratch")
    config = TrainConfig(shards="", model=init, out="", precision="fp32", batch_packs=1)
    with torch.device("meta"):
        model = NeoX(shape)
    engine = TorchEngine(NextToken(model), config, torch.device("cpu"))
    engine.load(StartingWeights(init, shape, 0))
    return engine


class Ours:
    """Our writer, waited for at once or not."""

    def __init__(self, shape: ModelConfig, folder: Path, *, waits: bool) -> None:
        self._writer, self._waits = AsyncWriter(folder, SINGLE, shape), waits

    def begin(self, engine: TorchEngine, step: int) -> float:
        started_s = time.perf_counter()
        self._writer.begin(step, 0, engine.slices(), lambda _: [])
        if self._waits:
            self.end()
        return time.perf_counter() - started_s

    def before_update(self) -> None:
        self._writer.before_update()

    def end(self) -> None:
        self._writer.wait()
        if self._writer.status:
            self._writer.publish()


class Theirs:
    """PyTorch's distributed checkpoint, saved asynchronously."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._saving = folder, None

    def begin(self, engine: TorchEngine, step: int) -> float:
        started_s = time.perf_counter()
        state = {f"{part.name}.{part.kind}": part.tensor for part in engine.slices()}
        self._saving = dcp.async_save(state, checkpoint_id=str(self._folder / f"dcp-{step}"))
        return time.perf_counter() - started_s

    def before_update(self) -> None:
        """Their copy is made before `begin` returns."""

    def end(self) -> None:
        if self._saving is not None:
            self._saving.result()


def measure(engine: TorchEngine, saver: Any, batch: Batch, num_steps: int, save_every: int) -> dict[str, Any]:
    """Take steps and save now and then; the figures are medians of the saves, and of the steps."""
    stalls, quiet, beside = [], [], []
    for step in range(1, num_steps + 1):
        started_s = time.perf_counter()
        engine.forward_backward(batch, batch.num_supervised, is_last=True)
        waited_s = time.perf_counter()
        saver.before_update()
        waited_s = time.perf_counter() - waited_s
        engine.step(1e-5)
        seconds = time.perf_counter() - started_s - waited_s
        is_beside = step % save_every == 1 and step > 1
        (beside if is_beside else quiet).append(seconds)
        if is_beside:
            stalls[-1] += waited_s
            saver.end()
        if step % save_every == 0:
            stalls.append(saver.begin(engine, next(NUMBERS)))
    saver.end()
    return {
        "stall_ms": 1000 * statistics.median(stalls),
        "worst_stall_ms": 1000 * max(stalls),
        "step_ms": 1000 * statistics.median(quiet),
        "steps_slower": statistics.median(beside) / statistics.median(quiet) - 1,
    }


def ways(shape: ModelConfig, folder: Path) -> Iterator[tuple[str, Any]]:
    yield "in the foreground", Ours(shape, folder, waits=True)
    yield "our thread", Ours(shape, folder, waits=False)
    yield "torch.distributed.checkpoint, async_save", Theirs(folder)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    figures = facts("torch")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="torch.distributed")
    shape = ModelConfig(16384, options.hidden, options.layers, options.hidden // 64, 4 * options.hidden)
    ids = np.random.default_rng(0).integers(5, 16384, options.tokens)
    batch = Batch(ids, np.roll(ids, -1), (options.tokens,), (0,))
    engine = make_engine(shape)
    with tempfile.TemporaryDirectory() as name:
        rows = []
        for what, saver in ways(shape, Path(name)):
            measure(engine, saver, batch, 3, 2)
            rows.append({"how": what, **measure(engine, saver, batch, 3 * options.saves + 1, 3)})
    size = engine.checkpoint_bytes / 1e9
    show(f"{size:.2f} GB per checkpoint, {options.saves} saves each", rows, steps_slower="+.0%")
    write(options.out, figures | {"checkpoint_gb": size, "table": rows})


if __name__ == "__main__":
    main()
