"""What all cases share: tiny shards and raw rows, undisturbed runs, and how long they take."""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the optimizer loads it at its first step; once here is faster than once in every fork

from sft.chat.tokenizer import train_tokenizer
from sft.cli.main import main
from sft.config.model import InitConfig
from sft.config.train import TrainConfig
from sft.train.loop import train
from tests.conftest import NUM_IDS, TEXTS, make_tiny_config, write_raw_mixture, write_tiny_shards
from tests.faults import failpoints
from tests.faults.oracle import FinalState
from tests.faults.process import Victim
from tests.support.ranks import finished, fork_ranks

NUM_STEPS = 12
NUM_ROWS = 60


@dataclass(frozen=True)
class Straight:
    """A run that nothing disturbed."""

    folder: Path
    state: FinalState
    run_s: float


class Material:
    """Made once, in a process that has then imported all that the forks of it will use."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        self.shards = folder / "shards"
        self.shards.mkdir(parents=True)
        write_tiny_shards(self.shards)
        self.straight = cache(self._straight)

    def config(self, **changes: Any) -> TrainConfig:
        """A run of 12 steps, saved every 4, whose loss scale (fp16 only) grows every 3.

        Without the proof before the first step, whose forward passes would count among those that cases count.
        """
        fixed = {"shards": str(self.shards), "fp16__scale_window": 3, "health__numerics_gate": False}
        return make_tiny_config(**{**fixed, **changes})

    def _straight(self, precision: str, size: int = 1) -> Straight:
        out = self.folder / f"straight-{precision}-{size}"
        config = self.config(out=str(out), precision=precision)
        started_s = time.monotonic()
        if size == 1:
            _silently(lambda: train(config))
        else:
            finished(
                fork_ranks(
                    size, lambda world, place: _silently(partial(train, config, world=world, meeting_place=place))
                )
            )
        return Straight(out, FinalState.of(out, NUM_STEPS), time.monotonic() - started_s)

    @cached_property
    def pair(self) -> Straight:
        """An undisturbed run of two processes."""
        return self.straight("fp32", 2)

    @cached_property
    def halves(self) -> list[Straight]:
        """Undisturbed runs in half precision."""
        return [self.straight(precision) for precision in ("fp16", "bf16")]

    @cached_property
    def save_points(self) -> list[str]:
        """The trip points of a run's saves, in order, each name as often as it comes."""
        out = self.folder / "counted"
        config = self.config(out=str(out))
        victim = Victim(
            lambda: train(config) or 0, (failpoints.note_points(out),), self.folder / "counted.messages", {}
        )
        victim.wait()
        return [point for point in victim.journal.read("point") if "/.staging-step-" in point]

    # ------------------------------------------------------------------------------------------------ builds

    @cached_property
    def build_settings(self) -> list[str]:
        """The words after `sft build` for a mixture of two small sources, but for the place of its shards."""
        tokenizer = self.folder / "tokenizer.json"
        tokenizer.write_text(train_tokenizer(TEXTS, NUM_IDS).json, encoding="utf-8")
        rows = {
            name: [[f"{name} {n}? {TEXTS[n % len(TEXTS)]}", f"answer {n * n}"] for n in range(NUM_ROWS)]
            for name in ("alpha", "beta")
        }
        raw = write_raw_mixture(self.folder / "mixture", tokenizer, **rows)
        return [str(raw.mixture), *(word for word in raw.settings if not word.startswith("out="))]

    @cached_property
    def built(self) -> Path:
        """An undisturbed build."""
        out = self.folder / "build" / "shards"
        out.parent.mkdir()
        if code := _silently(lambda: main(["build", *self.build_settings, f"out={out}"])):
            raise RuntimeError(f"the undisturbed build ended with {code}")
        return out

    @cached_property
    def build_points(self) -> list[str]:
        """The trip points of a build."""
        folder = self.folder / "counted-build"
        folder.mkdir()
        _ = self.built
        words = ["build", *self.build_settings, f"out={folder / 'shards'}"]
        victim = Victim(lambda: main(words), (failpoints.note_points(folder),), self.folder / "build.messages", {})
        victim.wait()
        return [str(point) for point in victim.journal.read("point")]

    # ------------------------------------------------------------------------------------------------ after training

    @cached_property
    def trained(self) -> Path:
        """A checkpoint of a run on the undisturbed build, which export and evaluation can use."""
        out = self.folder / "trained"
        model = InitConfig(weights="scratch", preset="tiny", vocab_size=NUM_IDS + 8)
        config = self.config(out=str(out), shards=str(self.built), max_steps=1, model=model)
        _silently(lambda: train(config))
        return out / "checkpoints" / "step-00000001"

    @cached_property
    def exported(self) -> Path:
        """The undisturbed export of it."""
        out = self.folder / "exported"
        if code := _silently(lambda: main(["export", str(self.trained), str(out)])):
            raise RuntimeError(f"the undisturbed export ended with {code}")
        return out

    @cached_property
    def evaluated(self) -> Path:
        """The undisturbed evaluation of it."""
        out = self.folder / "eval.json"
        if code := _silently(lambda: main(self.eval_words(out))):
            raise RuntimeError(f"the undisturbed evaluation ended with {code}")
        return out

    def eval_words(self, out: Path) -> list[str]:
        """An `sft eval` command that takes little time."""
        return ["eval", str(self.trained), f"out={out}", "generation.max_new_tokens=4", "split=train", "max_packs=4"]


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _silently(job: Callable[[], Any]) -> Any:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return job()
