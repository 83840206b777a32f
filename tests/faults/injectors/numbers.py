"""Family F: numbers that are none."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sft.config.train import TrainConfig
from sft.data.batches.sampler import Order
from tests import conftest
from tests.faults import failpoints
from tests.faults.fixtures import NUM_STEPS
from tests.faults.oracle import FinalState, Unfired, Wrong, records, saved_steps, step_records
from tests.faults.process import Hook, Journal, Victim
from tests.faults.sandbox import Bench, refused, require

MODEL = "sft.model.neox.model:NeoX.forward"
ENGINE_STEP = "sft.train.engine.native:TorchEngine.step"
BACKWARD = "sft.train.engine.native:TorchEngine.forward_backward"
MICRO_BATCHES = 2
BAD_NUMBERS = (math.nan, math.inf, -math.inf)


def spoiled_step(bench: Bench) -> str:
    """NaN or inf in the forward pass or in one gradient of one step: it is skipped, the weights keep their bits."""
    config, step = bench.config(), bench.rng.randint(2, NUM_STEPS - 1)
    hook = (spoiled_forward if bench.n % 2 else spoiled_gradient)(bench, step, step)
    victim = bench.train(config, hook, watched_weights)
    require(victim, 0)
    skipped = _require_kept_weights(victim)
    if skipped != [step]:
        raise Wrong(f"steps {skipped} left the weights alone, expected {step}")
    said = [record["step"] for record in step_records(Path(config.out)) if record["skipped"]]
    if said != [step]:
        raise Wrong(f"metrics call the steps {said} skipped, expected {step}")
    require_json(Path(config.out) / "metrics.jsonl")
    _require_finite(config)
    return "S"


def spoiled_steps(bench: Bench) -> str:
    """Three spoiled steps in a row: the run ends and names the packs; without the fault it goes on as if never."""
    config = bench.config()
    first = (5, 6, 9, 10)[bench.n % 4] if bench.n % 4 in (0, 2) else 5
    hook = (spoiled_forward if bench.n % 2 else spoiled_gradient)(bench, first, first + 2)
    victim = bench.train(config, hook)
    require(victim, 70)
    ending = refused(victim, 70, rf"step {first + 2}, packs \d+", "not finite in 3 steps in a row")
    bench.kept(config)
    if any(step >= first for step in saved_steps(Path(config.out))):
        raise Wrong("a step after the fault was saved")
    bench.ends_alike(config)
    return ending


def nothing_supervised(bench: Bench) -> str:
    """No supervised token in a micro-batch, or in a whole step."""
    config = bench.config(shards=str(bench.folder / "shards"), max_steps=6)
    step = bench.rng.randint(1, 5)
    packs = Order(24, config.batch_packs, config.epochs, config.seed).batch(step)
    empty = packs if bench.n % 2 else packs[: len(packs) // MICRO_BATCHES]

    def emptied(original: Callable[..., Any], *arguments: Any) -> Any:
        return [unsupervised(pack) if number in empty else pack for number, pack in enumerate(original(*arguments))]

    failpoints.replace("tests.conftest:_random_packs", emptied)
    (bench.folder / "shards").mkdir()
    conftest.write_tiny_shards(bench.folder / "shards")
    victim = bench.train(config, watched_weights)
    if code := victim.wait():
        raise Wrong(f"exit code {code}: {victim.messages[-600:]}")
    record = step_records(Path(config.out))[step]
    if (record["supervised_tokens"] == 0) != bool(bench.n % 2):
        raise Unfired(f"step {step + 1} has {record['supervised_tokens']} supervised tokens")
    if bench.n % 2 and "no supervised token" not in victim.messages:
        raise Wrong("a step without supervised tokens is not mentioned")
    bench.verifies(config)
    _require_finite(config)
    return "S"


def unsupervised(pack: Any) -> Any:
    """The same pack with an empty mask."""
    return type(pack)(pack.input_ids_T, pack.loss_mask_T * 0, pack.doc_lengths_N, pack.doc_ids_N, 0)


def overflow(bench: Bench) -> str:
    """fp16: a gradient overflows once, halving the loss scale, or at the smallest scale again and again."""
    step = bench.rng.randint(1, NUM_STEPS - 1)
    if bench.n % 2 == 0:
        config = bench.config(precision="fp16")
        victim = bench.train(config, spoiled_gradient(bench, step, step), watched_weights)
        require(victim, 0)
        scales = [record["scale"] for record in step_records(Path(config.out))]
        if scales[step] != scales[step - 1] / 2 or _require_kept_weights(victim) != [step]:
            raise Wrong(f"step {step} overflowed, scales {scales}")
        return "S"
    config = bench.config(precision="fp16", fp16__initial_scale_power=1)
    victim = bench.train(config, spoiled_gradient(bench, 1, NUM_STEPS))
    require(victim, 70)
    return refused(victim, 70, "not finite in 3 steps in a row")


def spike(bench: Bench) -> str:
    """The loss of one step is ten or a thousand times too high: recorded once, and the run goes on unchanged."""
    config, step = bench.config(health__spike_window=8), bench.rng.randint(5, NUM_STEPS - 1)
    factor = (10.0, 1000.0)[bench.n % 2]

    def raised(number: int, journal: Journal) -> Any:
        if number != step:
            return None
        journal.fire(f"loss x {factor}")
        return lambda result: replace(result, loss_sum=result.loss_sum * factor)

    require(bench.train(config, failpoints.on_call(ENGINE_STEP, raised, after=True)), 0)
    out = Path(config.out)
    spikes = [record["step"] for record in records(out) if record["kind"] == "spike"]
    if spikes != [step]:
        raise Wrong(f"spikes are recorded at {spikes}, expected {step}")
    found, wanted = FinalState.of(out, NUM_STEPS), bench.material.straight("fp32").state
    if found.tensors != wanted.tensors:
        raise Wrong("a loss that was only reported has changed the weights")
    _require_sane_window(found)
    return "S"


def spoilt_window(bench: Bench) -> str:
    """A loss that is no number is offered to the window of recent losses: it stays finite, healthy steps are taken."""
    config, step = bench.config(health__spike_window=8), bench.rng.randint(3, NUM_STEPS - 1)
    require(bench.train(config, spoiled_forward(bench, step, step)), 0)
    found = FinalState.of(Path(config.out), NUM_STEPS)
    if skipped := [record["step"] for record in found.records if record["skipped"] and record["step"] != step]:
        raise Wrong(f"healthy steps were skipped: {skipped}")
    _require_sane_window(found)
    return "S"


def _require_sane_window(state: FinalState) -> None:
    losses = state.facts["counts"]["recent_losses"]
    if len(losses) < 8 or not all(isinstance(loss, float) and 0 < loss < 100 for loss in losses):
        raise Wrong(f"the window holds {losses}")


def unprintable(bench: Bench) -> str:
    """NaN and inf on their way to the metrics: every line is valid JSON."""
    config = bench.config()
    victim = bench.train(config, spoiled_forward(bench, 3, 4))
    require(victim, 0)
    require_json(Path(config.out) / "metrics.jsonl")
    if [record["step"] for record in step_records(Path(config.out))] != list(range(1, NUM_STEPS + 1)):
        raise Wrong("steps are missing in the metrics")
    return "S"


def wrong_normaliser(bench: Bench) -> str:
    """A planted bug: the loss is divided by the micro-batch's tokens, not by the step's."""

    def dividing(journal: Journal) -> None:
        def wrapped(original: Any, engine: Any, batch: Any, _num_supervised: int, **named: Any) -> Any:
            journal.fire("normaliser")
            return original(engine, batch, MICRO_BATCHES * batch.num_supervised, **named)

        failpoints.replace(BACKWARD, wrapped)

    return caught(bench, dividing)


def wrong_schedule(bench: Bench) -> str:
    """A planted bug: after a resume the learning rate is that of a step before or after."""
    config = bench.config()
    bench.train_dies(
        config, failpoints.on_call(ENGINE_STEP, lambda number, journal: _die(number == 9, journal)), code=1
    )
    shift = 1 if bench.n % 2 else -1

    def shifting(journal: Journal) -> None:
        def wrapped(original: Any, step: int, *arguments: Any) -> Any:
            journal.fire("schedule")
            return original(step + shift, *arguments)

        failpoints.replace("sft.train.loop:learning_rate", wrapped)

    return caught(bench, shifting)


def caught(bench: Bench, hook: Hook) -> str:
    """Make sure that a planted bug is seen by the comparison with the undisturbed run."""
    config = bench.config()
    require(bench.train(config, hook), 0)
    wanted = bench.material.straight("fp32").state
    if not wanted.differences(FinalState.of(Path(config.out), NUM_STEPS)):
        raise Wrong("nobody notices")
    return "R caught"


# ------------------------------------------------------------------------------------------------ hooks


def spoiled_forward(bench: Bench, first: int, last: int) -> Hook:
    """What the model computes is no number in one micro-batch of each of these steps."""
    bad, place = bench.rng.choice(BAD_NUMBERS), bench.rng.randrange(MICRO_BATCHES)
    calls = [MICRO_BATCHES * (step - 1) + place + 1 for step in range(first, last + 1)]

    def spoil(number: int, journal: Journal) -> Any:
        if number not in calls:
            return None
        journal.fire(f"forward {bad}")
        return lambda hidden: hidden * bad

    return failpoints.on_call(MODEL, spoil, after=True)


def spoiled_gradient(bench: Bench, first: int, last: int) -> Hook:
    """One number of one parameter's gradient is none in each of these steps."""
    bad, number = bench.rng.choice(BAD_NUMBERS), bench.rng.randrange(1000)

    def install(journal: Journal) -> None:
        steps = 0

        def spoiling(original: Any, engine: Any, *arguments: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if first <= steps <= last:
                journal.fire(f"gradient {bad}")
                gradients = [value.grad for value in engine.model.parameters() if value.grad is not None]
                gradient = gradients[number % len(gradients)].view(-1)
                gradient[number % len(gradient)] = bad
            return original(engine, *arguments, **named)

        failpoints.replace(ENGINE_STEP, spoiling)

    return install


def watched_weights(journal: Journal) -> None:
    """A hook: tell of every step whether it changed a weight."""
    num_steps = 0

    def watching(original: Any, engine: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        before = [value.detach().clone() for value in engine.model.parameters()]
        result = original(engine, *arguments, **named)
        same = all(map(torch.equal, before, engine.model.parameters()))
        journal.write("weights", [num_steps, same])
        return result

    failpoints.replace(ENGINE_STEP, watching)


def require_json(path: Path) -> None:
    """Make sure that every line is strict JSON.

    Raises: Wrong.
    """

    def refuse(name: str) -> None:
        raise Wrong(f"{path.name} holds {name}, which is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def _die(now: bool, journal: Journal) -> None:
    if now:
        journal.fire("exception")
        raise LookupError("planted")


def _require_kept_weights(victim: Victim) -> list[int]:
    return [step for step, same in victim.journal.read("weights") if same]


def _require_finite(config: TrainConfig) -> None:
    steps = saved_steps(Path(config.out))
    state = FinalState.of(Path(config.out), steps[-1])
    for name, data in state.tensors.items():
        if not torch.frombuffer(bytearray(data), dtype=torch.float32).isfinite().all():
            raise Wrong(f"{name} is not finite")
