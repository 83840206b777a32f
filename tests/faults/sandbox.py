"""What a case works with: a folder, a generator of random numbers, victims, and the undisturbed run to compare with."""

import random
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.cli.main import main
from sft.config.train import TrainConfig
from sft.config.yaml_text import as_yaml
from tests.faults import failpoints
from tests.faults.fixtures import NUM_STEPS, Material, Straight
from tests.faults.oracle import (
    FinalState,
    Lost,
    Unfired,
    Wrong,
    checkpoint,
    is_whole,
    last_step,
    require_kept,
    saved_steps,
)
from tests.faults.power_loss import PowerCut
from tests.faults.process import Hook, Job, Victim

KILLED = -signal.SIGKILL


class Bench:
    """Everything that the n-th injection of a case may use; it is the same in every run of the suite."""

    def __init__(self, case_id: str, n: int, folder: Path, material: Material) -> None:
        self.n, self.folder, self.material = n, folder, material
        self.rng = random.Random(f"{case_id} {n}")
        self._num_victims = self._num_meetings = 0

    def config(self, **changes: Any) -> TrainConfig:
        """The config of a run in this case's folder."""
        return self.material.config(**{"out": str(self.folder / "run"), **changes})

    def finished(self, size: int = 1, **changes: Any) -> TrainConfig:
        """The config of a finished run of so many processes, in a folder that the case may hurt."""
        config = self.config(**changes)
        shutil.copytree(self._straight(config, size).folder, config.out, symlinks=True)
        return config

    def original(self, config: TrainConfig, step: int) -> Path:
        """The checkpoint of a step of the undisturbed run."""
        return checkpoint(self._straight(config, 1).folder, step)

    def run(self, job: Job, *hooks: Hook, environ: Mapping[str, str] | None = None) -> Victim:
        """Start a victim."""
        self._num_victims += 1
        return Victim(job, hooks, self.folder / f"messages-{self._num_victims}", environ or {})

    def command(self, *words: str, hooks: tuple[Hook, ...] = (), environ: Mapping[str, str] | None = None) -> Victim:
        """Start a victim that runs an `sft` command."""
        return self.run(lambda: main(words), *hooks, environ=environ)

    def train(self, config: TrainConfig, *hooks: Hook, environ: Mapping[str, str] | None = None) -> Victim:
        """Start a victim that trains as `sft train` does."""
        path = self.folder / f"train-{self._num_victims}.yaml"
        path.write_text(as_yaml(config))
        return self.command("train", str(path), hooks=hooks, environ=environ)

    def kept(self, config: TrainConfig, reached: int | None = None) -> None:
        """Make sure that a run that died left what it must."""
        out = Path(config.out)
        # A save beside training has to be published before the next one begins.
        interval = config.checkpoint.every_steps * (2 if config.checkpoint.async_save else 1)
        require_kept(out, last_step(out) if reached is None else reached, interval, config.checkpoint.keep_last)

    def train_together(self, config: TrainConfig, *hooks: tuple[Hook, ...]) -> list[Victim]:
        """Start one process for each tuple of hooks; they train together."""
        self._num_meetings += 1
        meeting = f"file://{self.folder}/meeting-{self._num_meetings}"

        def meet(original: Any, *arguments: Any, **named: Any) -> Any:
            return original(*arguments, **{**named, "init_method": meeting})

        met: Hook = lambda _journal: failpoints.replace("sft.train.loop:connected", meet)  # noqa: E731
        return [
            self.train(config, met, *own, environ={"RANK": str(rank), "WORLD_SIZE": str(len(hooks)), "LOCAL_RANK": "0"})
            for rank, own in enumerate(hooks)
        ]

    def ends_alike(self, config: TrainConfig, *, size: int = 1) -> str:
        """Let the run go on to its end, without a fault, and compare it with the undisturbed one; the verdict.

        Raises: Lost if a run with saves starts from scratch, Wrong if anything differs.
        """
        out = Path(config.out)
        had = [step for step in saved_steps(out) if is_whole(checkpoint(out, step))]
        victims = self.train_together(config, *[()] * size) if size > 1 else [self.train(config)]
        for victim in victims:
            if code := victim.wait():
                raise Wrong(f"going on ended with {code}: {victim.messages[-600:]}")
        if had and had[-1] < NUM_STEPS and f"going on after step {had[-1]} of" not in victims[0].messages:
            raise Lost(f"did not go on from step {had[-1]}: {victims[0].messages[-300:]}")
        self.is_alike(config, size)
        return "S"

    def is_alike(self, config: TrainConfig, size: int = 1) -> None:
        """Compare a finished run with the undisturbed one.

        Raises: Wrong if anything differs.
        """
        wanted = self._straight(config, size).state
        if found := wanted.differences(FinalState.of(Path(config.out), NUM_STEPS)):
            raise Wrong(f"ends otherwise than undisturbed: {'; '.join(found)}")
        if left := [path.name for path in (Path(config.out) / "checkpoints").glob(".[st]*")]:
            raise Wrong(f"left behind: {left}")

    def verifies(self, config: TrainConfig) -> None:
        """Let `sft verify` judge the run folder.

        Raises: Wrong.
        """
        victim = self.command("verify", config.out)
        if victim.wait():
            raise Wrong(f"sft verify: {victim.messages[-600:]}")

    def _straight(self, config: TrainConfig, size: int) -> Straight:
        return self.material.straight(config.precision, size) if size > 1 else self.material.straight(config.precision)

    def train_dies(self, config: TrainConfig, *hooks: Hook, code: int = KILLED, environ: Any = None) -> Victim:
        """Let a victim train until the fault ends it with this exit code, and check what it left."""
        victim = self.train(config, *hooks, environ=environ)
        require(victim, code)
        self.kept(config)
        return victim

    def power_cut(self, out: Path) -> PowerCut:
        """Lose, once the victim is dead, what it did not sync."""
        return PowerCut(out, self.rng)


def require(victim: Victim, code: int, *patterns: str) -> None:
    """Make sure that the fault happened and the victim ended as it must, its messages saying why.

    Raises: Unfired, Wrong.
    """
    found = victim.wait()
    if not victim.fired:
        raise Unfired(f"exit code {found}: {victim.messages[-300:]}")
    if found != code:
        raise Wrong(f"exit code {found}, expected {code}: {victim.messages[-600:]}")
    says(victim, *patterns)


def refused(victim: Victim, code: int, *patterns: str) -> str:
    """Make sure that a victim refuses with this exit code, in words for a user; the verdict.

    Raises: Wrong.
    """
    found = victim.wait()
    if found != code:
        raise Wrong(f"exit code {found}, expected a refusal with {code}: {victim.messages[-600:]}")
    says(victim, *patterns)
    if "Traceback" in victim.messages:
        raise Wrong(f"refused with a traceback: {victim.messages[-600:]}")
    return f"R {code}"


def says(victim: Victim, *patterns: str) -> None:
    """Make sure that its messages hold these patterns.

    Raises: Wrong.
    """
    if missing := [pattern for pattern in patterns if not re.search(pattern, victim.messages)]:
        raise Wrong(f"messages name no {missing}: {victim.messages[-600:]}")
