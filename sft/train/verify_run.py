"""`sft verify RUN`: check that checkpoints are whole and that every step used exactly the packs of its order."""

import json
from collections.abc import Iterator
from pathlib import Path

from sft.data.batches.sampler import Order
from sft.errors import ConfigError, DataError, listed
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import published, require_whole
from sft.train.inspect_step import run_inputs
from sft.train.monitor.ledger import BEGINNING, chained, read_lines
from sft.train.run_folder import RunFolder

NUM_SHOWN = 5
"""Problems that are listed; the others are only counted."""


def verify_run(path: Path) -> Iterator[str]:
    """One sentence for each check that passed.

    Raises: ConfigError if the run has saved nothing, StorageError if a checkpoint is damaged, DataError if the ledger
    differs from the order of the run.
    """
    folder, states = RunFolder(path), []
    for checkpoint in published(folder.checkpoints):
        states.append(require_whole(checkpoint))
        yield _whole(checkpoint, states[-1])
    if not states:
        raise ConfigError("the run has no checkpoint yet", on=folder.checkpoints, hint="wait for its first save")
    yield f"{folder.ledger}: {_verified_ledger(folder, states)}"


def verify_checkpoint(folder: Path) -> str:
    """A sentence about a checkpoint that is whole.

    Raises: StorageError if it is not.
    """
    return _whole(folder, require_whole(folder))


def _whole(folder: Path, state: State) -> str:
    return f"{folder}: a whole checkpoint of step {state.step}, every hash true"


def _verified_ledger(folder: RunFolder, states: list[State]) -> str:
    config, shards = run_inputs(folder)
    order = Order.of(config, shards.split("train"))
    num_steps = max(state.step for state in states)
    problems = [*_wrong_steps(folder.ledger, order, num_steps), *_broken_chain(folder.ledger, states)]
    if problems:
        raise DataError(
            f"not what the run should have done:{listed(problems, NUM_SHOWN)}",
            on=folder.ledger,
            hint="do not trust checkpoints after the first of these steps",
        )
    num_used = min(num_steps * config.batch_packs, order.num_samples)
    epochs, rest = divmod(num_used, order.num_packs)
    parts = [f"each of {order.num_packs} packs exactly {epochs} times"] if epochs else []
    parts += [f"{rest} of them once{' more' if epochs else ''}"] if rest else []
    return f"steps 1 to {num_steps} used {' and '.join(parts)}"


def _wrong_steps(path: Path, order: Order, num_steps: int) -> Iterator[str]:
    """Steps whose packs differ from the order of the run, in which every epoch has each pack once."""
    entries = [json.loads(line) for line in read_lines(path)][:num_steps]
    if len(entries) < num_steps:
        yield f"it has {len(entries)} whole lines, the newest checkpoint is of step {num_steps}"
    for step, entry in enumerate(entries, start=1):
        used, expected = sorted(entry["packs"]), sorted(order.batch(step - 1))
        if entry["step"] != step:
            yield f"line {step} is of step {entry['step']}"
        elif used != expected:
            yield f"step {step} used packs {used}, expected {expected}"


def _broken_chain(path: Path, states: list[State]) -> Iterator[str]:
    """Mismatches between the ledger and the hashes of it in the checkpoints."""
    digests = [BEGINNING]
    for line in read_lines(path):
        digests.append(chained(digests[-1], line))
    for state in sorted(states, key=lambda state: state.step):
        if state.step >= len(digests) or digests[state.step] != state.ledger:
            yield f"up to step {state.step} it is not what that checkpoint was saved with"
