"""Copies of the same weights that are not the same any more."""

from pathlib import Path
from typing import Any

from sft.train.engine.fsdp import local
from tests.faults import failpoints
from tests.faults.fixtures import NUM_STEPS
from tests.faults.injectors.kills import ENGINE_STEP
from tests.faults.injectors.ranks import PAIR
from tests.faults.oracle import Unfired, Wrong, saved_steps
from tests.faults.process import Journal
from tests.faults.sandbox import Bench, refused


def drifted_replica(bench: Bench) -> str:
    """One weight of one of two copies changes: both processes leave with 71, and nothing of it is ever saved."""
    config = bench.config(distributed__timeout_s=20.0, fsdp__shard_size=1)
    step, rank = bench.rng.randint(2, NUM_STEPS), bench.n % PAIR

    def drifting(journal: Journal) -> None:
        num_steps = 0

        def nudged(original: Any, engine: Any, *arguments: Any, **named: Any) -> Any:
            nonlocal num_steps
            num_steps += 1
            result = original(engine, *arguments, **named)
            if num_steps == step:
                local(next(engine.model.parameters()).detach()).view(-1)[0] += 1e-3
                journal.fire(f"weight of step {step}")
            return result

        failpoints.replace(ENGINE_STEP, nudged)

    victims = bench.train_together(config, *((drifting,) if number == rank else () for number in range(PAIR)))
    ending = {refused(victim, 71, "hold other weights than") for victim in victims}
    if not victims[rank].fired:
        raise Unfired("no weight was changed")
    if late := [saved for saved in saved_steps(Path(config.out)) if saved >= step]:
        raise Wrong(f"steps {late} were saved after the copies were apart")
    for victim in bench.train_together(config, (), ()):
        if code := victim.wait():
            raise Wrong(f"going on ended with {code}: {victim.messages[-600:]}")
    return ending.pop()
